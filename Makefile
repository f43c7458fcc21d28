PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test lab course weights experiments export chapters docs slides browser bench soak floors lint clean

demo: .venv/installed
	$(BIN)/detr-nb demo

test: export OMP_NUM_THREADS = 1
test: .venv/dev  ## every chapter in a real kernel, and all tests; one thread each, two at a time
	$(BIN)/python -m pytest tests -n 2 --dist worksteal

lab: .venv/course
	$(BIN)/jupyter lab nbs/00_start.ipynb

course: .venv/dev  ## the classroom: sources and release from the chapters, then graded for four made-up students
	$(BIN)/python tools/course.py generate
	$(BIN)/python tools/course.py check

weights: .venv/installed  ## train the embedded model again from nothing; goes on where it was interrupted
	$(BIN)/python tools/make_weights.py

experiments: .venv/installed  ## the experiments whose results chapters show; hours in all
	$(BIN)/python tools/make_experiments.py

export: .venv/dev  ## notebooks → library with its docstrings, and README
	$(BIN)/python tools/export.py

chapters: .venv/dev  ## run every chapter and keep its outputs
	$(BIN)/python tools/run_chapters.py

docs: .venv/docs  ## the website, in _docs/site
	$(BIN)/python tools/make_docs.py

slides: .venv/docs  ## slides for teachers, one HTML file for each part, in build/slides
	$(BIN)/python tools/make_slides.py

browser: docs  ## every link of the website, every page in Chromium
	$(BIN)/python -m pytest browser -v

soak: .venv/dev  ## 20,000 generated cases of what users hand to the library; a training killed 200 times
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/soak.py
	$(BIN)/python tests/survival.py 200

floors: .venv/bin/python  ## the tests with the oldest versions that settings.ini allows, in .venv-floors
	OMP_NUM_THREADS=1 $(BIN)/python tools/floors.py

bench: .venv/dev  ## side by side with transformers; ARGS="detection loss --threads 2 --check"
	$(BIN)/detr-nb bench $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python settings.ini setup.py
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/course: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[course]"
	touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

.venv/docs: .venv/dev
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

.venv/hub: .venv/dev  ## what the test of a class on JupyterHub needs: its proxy, with npm
	npm install --silent --no-fund --no-audit --prefix .venv/hub configurable-http-proxy

clean:
	rm -rf .venv .venv-floors build _docs dist demo runs *.egg-info
