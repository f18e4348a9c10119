# brainage. `make help` prints the targets.
PYTHON ?= python3
VENV   ?= .venv
EXP    ?= openbhb_exp
DATA   ?=
STUDY  ?= losses
LAUNCHER ?=
PROFILE ?= one_gpu
RUN    ?=
ON     ?=
FEATURES ?=
OUT    ?= demo_data/openbhb
ARGS   ?=
PIP_ARGS ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA_ARG := $(if $(DATA),--data "$(DATA)")
SLURM  := $(if $(filter slurm,$(LAUNCHER)),slurm)
ON     := $(if $(SLURM),--profile $(PROFILE))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint experiments simulate prepare inspect split pretrain evaluate report judge bench study check doctor ui clean

help: ## print the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  variables: EXP=experiment DATA=cohort-folder RUN=run-folder ON=cohort FEATURES=table OUT=folder STUDY=study LAUNCHER=slurm PROFILE=profile'
	@echo '             ARGS="key=value --limit 10 --dry-run" PIP_ARGS=...'

install: $(READY) ## virtual environment with the tested versions (PIP_ARGS= for another build of torch)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY) ## the whole road on two simulated cohorts, about 5 minutes on 2 quiet cores
	$(BIN)/brainage demo $(ARGS)

test: $(READY) ## all tests but the slow ones, about 11 minutes on 2 quiet cores
	$(BIN)/python -m pytest -m "not slow" -n 2 $(ARGS)

test-slow: $(READY) ## statistical coverage and long runs
	$(BIN)/python -m pytest -m slow -n 2 $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

experiments: $(READY) ## list the shipped experiments
	$(BIN)/brainage experiments

simulate: $(READY) ## write a simulated cohort to OUT= (ARGS="--layout adni --subjects 400")
	$(BIN)/brainage simulate --out "$(OUT)" $(ARGS)

prepare: $(READY) ## read a cohort once into its store: EXP= DATA=
	$(BIN)/brainage prepare $(EXP) $(DATA_ARG) $(ARGS)

inspect: $(READY) ## data sheet of a cohort, quality of its scans: EXP= DATA=
	$(BIN)/brainage inspect $(EXP) $(DATA_ARG) $(ARGS)

split: $(READY) ## write an experiment's split or folds to OUT=: EXP= DATA= ARGS="data.folds=5"
	$(BIN)/brainage split $(EXP) $(DATA_ARG) --out "$(patsubst demo_data/openbhb,splits,$(OUT))" $(ARGS)

pretrain: $(READY) ## pre-train, or continue: EXP= DATA= [LAUNCHER=slurm PROFILE=one_node]
	$(BIN)/brainage $(SLURM) pretrain $(EXP) $(ON) $(DATA_ARG) $(ARGS)

evaluate: $(READY) ## age, gap, diagnosis, site, trajectories, report: RUN= [ON=adni] [DATA=]
	$(BIN)/brainage evaluate "$(RUN)" $(if $(ON),--on "$(ON)") $(DATA_ARG) $(ARGS)

report: $(READY) ## write report.html again: RUN=
	$(BIN)/brainage report "$(RUN)" $(ARGS)

judge: $(READY) ## judge the embeddings of any tool: FEATURES=table EXP= DATA= OUT=folder
	$(BIN)/brainage judge "$(FEATURES)" $(EXP) $(DATA_ARG) --out "$(patsubst demo_data/openbhb,judged,$(OUT))" $(ARGS)

bench: $(READY) ## images a second of data, network and both: EXP= DATA=
	$(BIN)/brainage bench $(EXP) $(DATA_ARG) $(ARGS)

study: $(READY) ## arms x seeds, compared over seeds: STUDY=losses [LAUNCHER=slurm] (ARGS="--small", "data.root=DIR")
	$(BIN)/brainage $(SLURM) study $(STUDY) $(ON) $(ARGS)

check: $(READY) ## the battery any cohort must pass: EXP= DATA=
	$(BIN)/brainage check $(EXP) $(DATA_ARG) $(ARGS)

doctor: $(READY) ## what is wrong with this machine and how to mend it
	$(BIN)/brainage doctor

ui: $(READY) ## browse the runs in MLflow
	$(BIN)/brainage ui $(ARGS)

clean: ## remove caches and the demo's data; runs, stores and mlflow.db stay
	rm -rf demo_data .ruff_cache .mypy_cache .hypothesis build dist
