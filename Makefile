# make try    the bot in its sandbox: a chat page on this machine, no account, no token, no GPU
# make test   the tests
# make run    the bot on Discord, with the settings of .env

PYTHON ?= python3
PORT ?= 8787
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: try run test lint types check bench lock clean
.DEFAULT_GOAL := try

try: $(STAMP)
	ZBOT_SANDBOX_PORT=$(PORT) $(BIN)/python bot.py --sandbox

run: $(STAMP)
	$(BIN)/python bot.py

# Most tests wait for a bot of their own, so a few files run at once. What fails beside the others, for want of a free
# core perhaps, is run once more alone: what fails then has failed.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile \
		|| { echo "Once more, alone:"; $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

check: lint types test

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# The environment alone.
$(VENV): $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "zbot needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

# Pin what is installed now. torch brings the CUDA packages that belong to it by exact version itself.
lock: $(STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
