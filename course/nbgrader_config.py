"nbgrader's settings of the course; read by every `nbgrader` command that is run in this folder."
from pathlib import Path

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import ClearHiddenTests, GetGrades
from nbgrader.utils import is_grade

c = get_config()  # noqa: F821


class WithoutHiddenChecks(ClearHiddenTests):
    "Feedback shows neither the hidden checks of a private course nor the lines in which one failed."
    def preprocess_cell(self, cell, resources, index):
        return super().preprocess_cell(cell, resources, index) if is_grade(cell) else (cell, resources)

    def _remove_hidden_test_region(self, cell):
        removed = super()._remove_hidden_test_region(cell)
        for output in cell.get("outputs", ()) if removed else ():
            if output.output_type == "error": output.traceback = [f"{output.ename} in a check, perhaps in a hidden one"]
        return removed


c.CourseDirectory.root = str(Path(__file__).parent)
c.CourseDirectory.course_id = "detr"
c.ExecutePreprocessor.timeout = 120  # seconds a cell: a student's endless loop ends here, and the cell has failed
c.OverwriteCells.add_missing_cells = True  # a check that a student deleted comes back before it is graded
c.GenerateFeedback.preprocessors = [WithoutHiddenChecks, GetGrades, CSSHTMLHeaderPreprocessor]
