# Everything a user or a developer calls. Each target sets up what it needs first; a second call takes a moment.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# A sourced ROS distribution would shadow the wheels in .venv.
unexport PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH
python := .venv/bin/python
sources := ros2_ws/src training model_export launch tests tools

.PHONY: help runtime dev setup setup-dev demo gate test test-all faults soak bench gpu-check docs lint format clean distclean

help: ## Shows this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: runtime ## Sets up the robot side and the simulator (.venv, ros2_ws; no torch)
	@echo "Ready: make demo, or .venv/bin/dtvla --help"

setup-dev: dev ## Sets up training, export, tests and lint as well
	@echo "Ready: make test, make lint"

runtime dev: # what the other targets need; silent when all is there
	@tools/setup.sh $@

demo: runtime ## Runs three episodes of the shipped policy as a real ROS graph; ARGS="..." goes to `dtvla demo`
	@$(python) -m dtvla.cli demo $(ARGS)

gate: runtime ## Holds the shipped policy to what is on record in both embedded suites; ARGS="--policy B" takes your own
	@$(python) -m dtvla.cli gate --record docs/results/embedded.json $(ARGS)
	@$(python) -m dtvla.cli gate --record docs/results/embedded_tray.json $(ARGS)

test: dev ## Runs all tests; ARGS="-k words" chooses some, COVERAGE=1 says which lines ran
	@$(python) -m $(if $(COVERAGE),tools.line_coverage,pytest) $(ARGS)

test-all: test ## Those, then the ones that want large extras (CUDA's names, TensorRT-RTX, LeRobot: 1.9 GB, once)
	@tools/test_extras.sh

faults: dev ## Breaks the running graph in every way of the matrix; writes docs/results/faults.md (about 20 minutes)
	@$(python) -m tests.faults $(ARGS)

MINUTES := 20
soak: dev ## Runs the graph for MINUTES=20 and watches memory, threads, files; writes docs/results/soak.md
	@$(python) -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

bench: dev ## Measures decision latency, ROS overhead, simulator speed, our decision against torch, training
	@$(python) -m tools.benchmarks.midsize runs/midsize
	@$(python) -m tools.benchmarks --thoughts 500 --episodes 60 --larger runs/midsize $(ARGS)
	@$(python) -m tools.benchmarks.export
	@$(python) -m training.collect --episodes 4 --out runs/bench_data
	@$(python) -m training.sft.bench --data runs/bench_data --output docs/results/training_speed.json
	@$(python) -m training.rl.bench --checkpoint training/policies/embedded --output docs/results/training_speed.json

gpu-check: dev ## On a CUDA machine: kernel, latency of the 2.9 B model, TensorRT engines; writes docs/results/gpu-*.json
	@$(python) -m model_export.gpu_check $(ARGS)

docs: dev ## Builds the documentation site into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet
	@echo "The site is in site/index.html"

lint: dev ## Checks style and types
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

format: dev ## Formats the code in place
	@$(python) -m ruff check --fix --select I
	@$(python) -m ruff format

clean: ## Removes what was built; keeps .venv, data/ and runs/
	@rm -rf ros2_ws/build ros2_ws/install ros2_ws/log ros2_ws/src/dtvla/dtvla.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis site
	@find $(sources) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Removes .venv as well
	@rm -rf .venv
