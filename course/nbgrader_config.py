"nbgrader's settings of the course; read by every `nbgrader` command that is run in this folder."
from pathlib import Path

c = get_config()  # noqa: F821

c.CourseDirectory.root = str(Path(__file__).parent)
c.CourseDirectory.course_id = "detr"
c.ExecutePreprocessor.timeout = 120  # seconds a cell: a student's endless loop ends here, and the cell has failed
