# make try    the bot in its sandbox: a chat page on this machine, no account, no token, no GPU
# make test   the tests
# make run    the bot on Discord, with the settings of .env

PYTHON ?= python3
PORT ?= 8787
JOBS ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: try run test lint types check bench lock clean
.DEFAULT_GOAL := try

try: $(STAMP)
	ZBOT_SANDBOX_PORT=$(PORT) $(BIN)/python bot.py --sandbox

run: $(STAMP)
	$(BIN)/python bot.py

# A third of the time a test waits for a bot, so there is one file at work more than an ordinary runner has cores. The
# longest files go first, as pyproject.toml lists them, so that none of them is left alone at the end.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

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
	@echo "Installing what zbot needs into $(VENV), once. Most of it is torch: some minutes on a slow line."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@touch $@

# Pin what is installed now. torch brings the CUDA packages that belong to it by exact version itself.
lock: $(STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
