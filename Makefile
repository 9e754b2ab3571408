# Everything runs from .venv, which is made from requirements.lock when it is missing or outdated.
PROFILE ?= quick
PYTHON ?= python3
BIN := .venv/bin

.PHONY: report train test wheel lowest lint lab api figures bench lock clean

# TRAININGS=<folder>: take finished trainings from there, where they reproduce their accuracy.
report train: .venv/ready
	SIUTILS_TRAININGS=$(TRAININGS) $(BIN)/siutils $@ --profile $(PROFILE)

test: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The wheel alone, with its dependencies as they are today, or in the lowest versions declared.
wheel: .venv/ready
	.ci/try

lowest: .venv/ready
	.ci/try --resolution lowest-direct

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

api: .venv/ready
	$(BIN)/python docs/api.py reports/api

# Keep the results of a run in git: figures, tables and run record, no pages.
figures: .venv/ready
	$(BIN)/siutils report --check reports/$(PROFILE)
	rm -rf figures/$(PROFILE)
	mkdir -p figures/$(PROFILE)/tables
	cp reports/$(PROFILE)/figures/* reports/$(PROFILE)/run.json figures/$(PROFILE)/
	cp reports/$(PROFILE)/tables/*.csv figures/$(PROFILE)/tables/

# Nearest neighbors against brute force, scikit-learn and faiss; see benchmarks/neighbors.py.
bench: .venv/ready
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --requirement pyproject.toml --extra bench
	$(BIN)/python benchmarks/neighbors.py $(ARGS)

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes \
		--build-constraints requirements.lock --requirement requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --build-constraints requirements.lock --editable .
	touch $@

lock: .venv/ready
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra weights --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --quiet --custom-compile-command "make lock" \
		--output-file requirements.lock
	{ sed '/- pip:/q' environment.yml; echo '      - --editable .'; \
	  sed -n 's/ *\\$$//; /^[A-Za-z].*==/s/^/      - /p' requirements.lock; } > environment.tmp
	mv environment.tmp environment.yml

clean:
	rm -rf .venv reports build dist
