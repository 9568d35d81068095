# Everything that is needed is made on first use: the Python environment in .venv, control-plane
# binaries and engines in the user's cache. Python 3.11+, Go, make and git are assumed.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
RUN := PYTHONPATH=operator:e2e:tools:. $(BIN)/python
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tessera
ENGINE ?= sim
.DEFAULT_GOAL := help
# Workers would all rewrite the same assertions again, half a minute of processor each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

ifeq ($(filter undefine,$(.FEATURES)),)
$(error GNU make 3.82 or newer is needed, and this is $(MAKE_VERSION): install a newer one)
endif

.venv/made: requirements/dev.txt tools/setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "setup: Python 3.11 or newer is needed, and $(PYTHON) is" \
		"$$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo missing):" \
		"install it, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) tools/setup.py $(if $(filter demo% test test-e2e world,$(MAKECMDGOALS)),--world)

DEMO_OPTIONS = $(if $(KEEP),--keep) $(if $(REQUIRE_BUDGET),--require-budget)
.PHONY: demo
demo: .venv/made ## Set up everything and run the whole mission in one run; it writes REPORT (report.html). KEEP=1 keeps the cluster, ENGINE=vllm adds a real engine, REQUIRE_BUDGET=1 installs with requireBudget.
	@$(RUN) -m demo --engine $(ENGINE) $(if $(REPORT),--report "$(REPORT)") $(DEMO_OPTIONS)

.PHONY: demo-scale
demo-scale: .venv/made ## Run only its first steps: a service on a MIG slice, and replicas that follow the load.
	@$(RUN) -m demo scale $(DEMO_OPTIONS)

.PHONY: demo-budget
demo-budget: .venv/made ## Run only the budget: a scale-up is refused, a higher limit allows it.
	@$(RUN) -m demo budget $(DEMO_OPTIONS)

.PHONY: demo-batch
demo-batch: .venv/made ## Run only the batch: its spot node dies, and every row is answered once.
	@$(RUN) -m demo batch $(DEMO_OPTIONS)

.PHONY: demo-gateway
demo-gateway: .venv/made ## Run the gateway demo: two tenants share models by keys, limits, fair queues; one model sleeps.
	@$(RUN) -m demo gateway $(DEMO_OPTIONS)

.PHONY: demo-quality
demo-quality: .venv/made ## Run the gate demo: 8-bit weights that lose answers are refused, those that lose none are rolled out.
	@$(RUN) -m demo quality $(DEMO_OPTIONS)

.PHONY: demo-routes
demo-routes: .venv/made ## Run the demo of routes: one name over three models, one of them outside, what that saves, and targets that fail.
	@$(RUN) -m demo routes $(DEMO_OPTIONS)

.PHONY: demo-mig
demo-mig: .venv/made ## Run the MIG demo: 32 GPUs are repartitioned under running streams (BACKEND=MigManager uses NVIDIA's mig-manager).
	@$(RUN) -m demo mig $(if $(BACKEND),--backend $(BACKEND)) $(DEMO_OPTIONS)

.PHONY: test
test: .venv/made ## Set up everything and prove the promises: decisions, contracts on real servers, ten scenes in an installed world (FULL=1: more seeds and cases).
	@$(RUN) tools/prepare.py test $(if $(FULL),--full)
	@$(RUN) tools/run_tests.py test $(if $(FULL),--full)

.PHONY: test-e2e
test-e2e: .venv/made ## Run all other tests: faults, hostile tenants, the chart, scenarios, the simulated cluster itself (FULL=1: the nightly tests too).
	@$(RUN) tools/prepare.py test-e2e $(if $(FULL),--full)
	@$(RUN) tools/run_tests.py test-e2e $(if $(FULL),--full)

.PHONY: test-world
test-world: .venv/made ## Run all tests of the simulated cluster, and note that it passed: until it changes, `make test-e2e` runs few of them.
	@$(RUN) -m world build
	@$(BIN)/pytest -q --record-world e2e/world_tests

.PHONY: check
check: lint-code ## Check the code, and run the unit tests.
	@$(BIN)/pytest -q -n auto tests -m "not world and not long"

.PHONY: hostile
hostile: .venv/made ## Run the hostile-tenant suite, in memory and in a world; its last line counts scenes and differences (FULL=1: all scenes).
	@$(RUN) -m world build
	@$(BIN)/pytest -q tests/hostile e2e/hostile \
		e2e/scenarios/test_gateway.py::test_unknown_keys_and_models_are_refused_and_a_revoked_key_at_once \
		$(if $(FULL),--full)

.PHONY: lint
lint: .venv/made ## Check the code, build the site strictly, lint the images and the rendered chart.
	@$(RUN) tools/prepare.py lint
	@$(MAKE) --no-print-directory --jobs 3 --output-sync lint-code docs lint-images

.PHONY: lint-code
lint-code: .venv/made ## Check format, lint, types, import rules, generated files and names.
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@# A clean checkout begins with the types that the last one found.
	@[ -d .mypy_cache ] || tar xf $(CACHE)/mypy.tar 2>/dev/null || true
	@MYPYPATH=operator:e2e:tools $(BIN)/mypy
	@mkdir -p $(CACHE); tar cf $(CACHE)/mypy.$$$$ .mypy_cache && mv $(CACHE)/mypy.$$$$ $(CACHE)/mypy.tar
	@PYTHONPATH=operator $(BIN)/lint-imports --no-logo
	@$(RUN) tools/generate.py --check
	@$(RUN) tools/check_words.py
	@$(RUN) tools/check_memory.py
	@$(RUN) tools/doc_words.py

.PHONY: test-vllm
test-vllm: .venv/made ## Compare the simulator with a real vLLM on the CPU (UPDATE=1 records its responses again).
	@UPDATE=$(UPDATE) $(BIN)/pytest -q -s --vllm -m vllm tests/conformance

.PHONY: generate
generate: .venv/made ## Write CRDs, RBAC, chart values and reference pages from the types.
	@$(RUN) tools/generate.py

.PHONY: package
package: .venv/made ## Package the chart as dist/tessera-VERSION.tgz, the same bytes from any checkout.
	@$(RUN) tools/package_chart.py

.PHONY: world
world: .venv/made ## Start a local control plane without a demo and keep it; print its KUBECONFIG.
	@$(RUN) -m world up

.PHONY: env
env: .venv/made ## Print the exports for the running cluster: eval "$(make -s env)".
	@$(RUN) -m world env

.PHONY: down
down: .venv/made ## Stop the cluster of `make world` or `make demo KEEP=1`.
	@$(RUN) -m world down

.PHONY: fresh
fresh: ## Clone HEAD and run both README commands with an empty home and a bare PATH (LOAD=6 keeps the machine busy beside them).
	@$(PYTHON) tools/fresh.py $(if $(LOAD),--load $(LOAD))

.PHONY: lint-images
lint-images: .venv/made ## Lint the Dockerfiles and the rendered chart.
	@$(RUN) tools/lint_images.py

.PHONY: docs
docs: .venv/made ## Build the documentation site strictly, into site/.
	@$(RUN) tools/docs.py build

.PHONY: docs-serve
docs-serve: .venv/made ## Serve the documentation on 127.0.0.1, and rebuild it on every change.
	@$(RUN) tools/docs.py serve

.PHONY: images-list
images-list: .venv/made ## List the images that a cluster pulls, for a mirror (REGISTRY=host/path rewrites them).
	@$(RUN) tools/images.py $(REGISTRY)

.PHONY: bench-turn
bench-turn: .venv/made ## Measure the CPU time of an unchanged reconcile with 50 services (OPTIONS='--moving 2000': of a rollout; --gated: of idle gates, budgets and routes).
	@$(RUN) tools/bench_turn.py $(OPTIONS)

.PHONY: bench-scaling
bench-scaling: .venv/made ## Measure scaling policies on an hour of five load shapes: attainment and replica-hours, the CPU time of a decision, and in a world the time until one.
	@$(RUN) tools/bench_scaling.py $(OPTIONS)

.PHONY: bench-scale
bench-scale: .venv/made ## Measure what scaling policies cost at a kept promise on public traces (TRACES=DIR, HOURS=24, OPTIONS='--cases conv,code --parts own,rivals --page').
	@$(RUN) tools/bench_scale.py $(if $(TRACES),--traces $(TRACES)) $(if $(HOURS),--hours $(HOURS)) $(OPTIONS)

.PHONY: claims
claims: .venv/made ## Compute fifty claims about the cost of inference, and say which hold (about a minute; OPTIONS=--save records them for the pages).
	@$(RUN) tools/claims.py $(OPTIONS)

.PHONY: tune-rivals
tune-rivals: .venv/made ## Tune the knobs of all scaling policies on the cuts that bench-scale does not score.
	@$(RUN) tools/tune_rivals.py $(OPTIONS)

.PHONY: compare-records
compare-records: .venv/made ## Say what fleets, requests, calls and objects show otherwise than in the commit BASE (about 4 minutes).
	@$(RUN) tools/compare_records.py $(BASE) $(OPTIONS)

.PHONY: record-course
record-course: .venv/made ## Record twelve minutes with bursts in a world, which tests compare simulated fleets with (about 16 minutes).
	@$(RUN) -m bench.record_course $(OPTIONS)

.PHONY: record-energy
record-energy: .venv/made ## Record the energy of a day of GPUs in five minutes of a world, which tests sum up (about 7 minutes).
	@$(RUN) -m bench.record_energy $(OPTIONS)

.PHONY: bench-scenarios
bench-scenarios: .venv/made ## Measure what scaling policies keep in hard situations of a simulated fleet: no ratchet, oscillation, loss or deadlock (about 5 minutes).
	@$(RUN) tools/bench_scenarios.py $(OPTIONS)

.PHONY: bench-layouts
bench-layouts: .venv/made ## Measure the CPU time of a cycle over 1,000 GPUs with the planned layout, and while they are partitioned.
	@$(RUN) tools/bench_layouts.py $(OPTIONS)

.PHONY: bench-floors
bench-floors: .venv/made ## Measure what generated fleets lose of their floors, whatever meets in them (about 4 minutes of CPU; OPTIONS='--fleets 10000 --sequences 1000 --drawn 2000 --jobs 2').
	@$(RUN) tools/bench_floors.py $(OPTIONS)

.PHONY: bench-charges
bench-charges: .venv/made ## Measure what charges cost a gateway, and how far a limit is spent before it refuses (about 5 seconds).
	@$(RUN) tools/bench_charges.py $(OPTIONS)

.PHONY: bench-gates
bench-gates: .venv/made ## Measure how often the verdict of a gate is wrong, which losses it finds, and how many prompts it asks for (about 7 minutes of CPU; OPTIONS='--suites 1000').
	@$(RUN) tools/bench_gates.py $(OPTIONS)

.PHONY: bench-routes
bench-routes: .venv/made ## Measure what rules of a route cost at 95 % of the better model's quality, and their CPU time (about two minutes; needs ../shared, else prompts are generated).
	@$(RUN) tools/bench_routes.py $(OPTIONS)

.PHONY: bench-control
bench-control: .venv/made ## Measure the operator on 250 nodes and 2,000 services: time, CPU, memory, writes (about 25 minutes).
	@$(RUN) -m bench $(OPTIONS)

.PHONY: bench-batch
bench-batch: .venv/made ## Measure CPU time, memory and losses of the batch runner, killed at random.
	@$(RUN) tools/bench_batch.py $(OPTIONS)

.PHONY: bench-starts
bench-starts: .venv/made ## Measure what fetching a model from S3 costs: bytes of later starts, speed beside cat, memory (OPTIONS='--mib 64').
	@$(RUN) tools/bench_starts.py $(OPTIONS)

.PHONY: bench-gateway-share
bench-gateway-share: .venv/made ## Measure how 1 to 3 gateways and direct clients share an engine, in a simulation (seconds).
	@$(RUN) tools/bench_gateway_share.py $(OPTIONS)

.PHONY: bench-affinity
bench-affinity: .venv/made ## Measure what it is worth to route by cached prefixes, beside other routers, on 4 and 16 simulated replicas (about half an hour of CPU; OPTIONS='--workloads sessions,none --replicas 4 --seeds 1').
	@$(RUN) tools/bench_affinity.py $(OPTIONS)

.PHONY: bench-gateway
bench-gateway: .venv/made ## Measure the CPU time of a gateway for a request and a chunk, beside vllm-router and LiteLLM, and its memory (OPTIONS='--memory-requests 1000000' for all of it, --save keeps it).
	@$(RUN) tools/bench_gateway.py $(OPTIONS)

.PHONY: bench-hostile
bench-hostile: .venv/made ## Measure what a bystander notices of attacks on a gateway and of edits by another tenant, what they take, and what failures cost (about 12 minutes; OPTIONS='--only edits').
	@$(RUN) tools/bench_hostile.py $(OPTIONS)

.PHONY: engine-tables
engine-tables: .venv/made ## Write the tables of flags and metrics of vLLM's versions (0.7 GB of downloads once, then seconds).
	@$(RUN) tools/engine_tables.py

.PHONY: levers
levers: .venv/made ## Compute what each lever brings, alone and in order, for the pages of the ladders (most of a minute); then run make generate.
	@$(RUN) tools/ladders.py

.PHONY: bench-sim
bench-sim: .venv/made ## Measure memory and speed of the simulator.
	@$(RUN) tools/bench_sim.py $(OPTIONS)

.PHONY: bench-engine
bench-engine: .venv/made ## Measure the engine's state machine on a day of a million requests, and the errors of predicted speeds.
	@$(RUN) tools/bench_engine.py $(OPTIONS)

.PHONY: bench-mig
bench-mig: .venv/made ## Measure MIG layouts: time and gap of plans, GPUs compared with simpler planners, moves under churn (about 5 minutes).
	@$(RUN) tools/bench_mig.py $(OPTIONS)

.PHONY: fit-vllm
fit-vllm: .venv/made ## Fit the simulator to a real vLLM on the CPU and compare the two (about 15 minutes; OPTIONS=--save keeps it).
	@$(RUN) -m fit $(OPTIONS)

.PHONY: calibrate
calibrate: .venv/made ## Fit the shipped table of speeds again, and print its errors (needs the measurements in ../shared).
	@$(RUN) tools/calibrate.py

.PHONY: derive-experts
derive-experts: .venv/made ## Derive the shares of the kernels of experts again, and print their errors; then make calibrate.
	@$(RUN) tools/derive_experts.py

.PHONY: bench-client
bench-client: .venv/made ## Measure the CPU time of the client of tessera bench.
	@$(RUN) tools/bench_client.py $(OPTIONS)

.PHONY: soak
soak: .venv/made ## Inject faults into the installed chart for MINUTES (30), drawn by SEED; print the differences of the end state and the growth of memory.
	@$(RUN) -m soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

.PHONY: requirements
requirements: ## Pin all dependencies again, with hashes.
	@$(PYTHON) tools/requirements.py
