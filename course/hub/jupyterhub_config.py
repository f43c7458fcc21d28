"""A small hub for a class with nbgrader: `jupyterhub -f jupyterhub_config.py`.

TRIAL = True: everybody who reaches this machine's port logs in as anybody, without a password, and all servers run
under the account that started the hub. TRIAL = False: the accounts and passwords of the system; root starts the hub,
and it belongs behind HTTPS.
"""
import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821

FOLDER = "/srv/nbgrader"  # holds nbgrader_config.py, the exchange, and the homes of a trial
TEACHER, STUDENTS = "teacher", {"ada", "alan"}
TRIAL = True

c.Authenticator.allowed_users = {TEACHER} | STUDENTS
c.JupyterHub.authenticator_class = "dummy" if TRIAL else "pam"
c.JupyterHub.spawner_class = "simple" if TRIAL else "localprocess"
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # seconds: the first start on a cold disk is slow
c.Spawner.environment = {"JUPYTER_CONFIG_PATH": FOLDER}  # so that every server reads nbgrader_config.py there
os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]  # nbgrader calls alembic

if TRIAL:
    c.JupyterHub.bind_url = "http://127.0.0.1:8000"  # from this machine only
    c.SimpleLocalProcessSpawner.home_dir_template = FOLDER + "/home/{username}"
    if os.geteuid() == 0: c.Spawner.args = ["--allow-root"]  # Jupyter refuses to run as root without it
