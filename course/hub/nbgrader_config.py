"nbgrader's settings for everybody on the hub; the server of each user reads them."
import getpass
import os
from pathlib import Path

c = get_config()  # noqa: F821

FOLDER = "/srv/nbgrader"
TEACHER = "teacher"
COURSE = Path.home() / "course"  # in the teacher's home: the folder `course` of the repository

c.Exchange.root = FOLDER + "/exchange"
c.CourseDirectory.course_id = "detr"

user = os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
if user == TEACHER: load_subconfig("nbgrader_config.py", path=str(COURSE))  # noqa: F821
else: c.CourseDirectory.student_id = user  # in a trial the account of the system is the same for all
