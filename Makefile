# `make run` starts the hub with a demo fleet, `make test` proves it works; both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Modules are compiled once, not anew by each of the many processes that these commands start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test e2e lint format protos bench chaos fuzz soak check-deploy check-cookbook check-tracing check-apiserver check-peers pin-images clean setup

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

run: $(READY)
	@$(BIN)/python -m demo $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(TLS),--tls)

# What measures comes after the rest, one at a time.
test: $(READY)
	@failed=; \
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal --cov --cov-report=term --cov-fail-under=90 || failed=1; \
	$(BIN)/python -m pytest -m "alone and not weak_network" || failed=1; \
	[ -z "$$failed" ]

# Network namespaces: needs root, and Debian's iproute2 and iptables. Logs stay in .run/e2e*. Scenarios measure:
# those that wait most of their time are played side by side, the others alone after that; those that fail are
# played once more, one at a time, and that is what counts. TRANSPORT=quic plays them over QUIC, EDGES=stock with
# doubles of stock edges.
WEAK := $(BIN)/python -m pytest tests/weak_network -rs
e2e: $(READY)
	@mkdir -p .run
	@failed=; \
	$(WEAK) -m "weak_network and not alone" --cache-clear --basetemp .run/e2e \
		--numprocesses 8 --dist worksteal || failed=1; \
	$(WEAK) -m "weak_network and alone" --earlier-rows --basetemp .run/e2e-alone || failed=1; \
	[ -z "$$failed" ] || $(WEAK) -m weak_network --earlier-rows --basetemp .run/e2e-again \
		--last-failed --last-failed-no-failures none

# What people type: the commands that the documents show, and cloudhubctl. The first time, grpcurl is built: half a minute.
check-cookbook: $(READY)
	$(BIN)/python -m scripts.get_tools grpcurl
	$(BIN)/python -m pytest -m cookbook --numprocesses 3 -rs tests/docs tests/ctl

# The first time, Helm is built: two minutes on two cores.
check-deploy: $(VENV)/.ready-deploy
	$(BIN)/python -m scripts.get_tools prometheus helm
	$(BIN)/python -m pytest -m deploy tests/deploy

# The real Jaeger and the real Prometheus. The first time, Jaeger is built: a few minutes on two cores.
check-tracing: $(READY)
	$(BIN)/python -m scripts.get_tools jaeger prometheus
	@mkdir -p .run
	CI=true CLOUDHUB_TRACE_FILE=$(CURDIR)/.run/trace.json $(BIN)/python -m pytest -m observability tests/observability

# The real kube-apiserver. The first time it is built with its etcd: some five minutes on two cores.
check-apiserver: $(VENV)/.ready-deploy
	$(BIN)/python -m scripts.get_tools kubernetes operator-kinds helm
	CI=true $(BIN)/python -m pytest -m apiserver tests/deploy

# Clients of the QUIC link on quic-go and quinn (examples/edge-go, examples/edge-rust). The first time they are built: two minutes
# on two cores. PEERS=edge-go plays one alone.
PEERS ?= edge-go edge-rust
check-peers: $(READY)
	$(BIN)/python -m scripts.get_tools $(PEERS)
	CI=true $(BIN)/python -m pytest -m peers tests/peers -k "$(subst $() $(), or ,$(strip $(PEERS)))"

$(VENV)/.ready-deploy: $(READY) deploy/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r deploy/requirements.txt
	touch $@

# Needs crane or skopeo, and the registries.
pin-images: $(READY)
	$(BIN)/python -m scripts.pin_images

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(READY)
	$(BIN)/python scripts/generate_protos.py

bench: $(READY)
	@$(BIN)/python -m bench $(if $(STORE),--store $(STORE)) $(if $(REPLICAS),--replicas $(REPLICAS)) \
		$(if $(TLS),--tls) $(if $(TRANSPORT),--transport $(TRANSPORT))

# STORE=patroni: etcd is built the first time, some minutes.
chaos: $(READY)
	@$(if $(filter patroni,$(STORE)),$(BIN)/python -m scripts.get_tools etcd patroni)
	@$(BIN)/python -m chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(FAULTS),--faults $(FAULTS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(STORE),--store $(STORE)) $(if $(filter sqlite,$(STORE)),--replicas 1) \
		$(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(TLS),--tls) $(if $(EDGES),--edges $(EDGES))

# Atheris guides the pure targets by coverage where there is a wheel of it for this Python.
fuzz: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris || \
		echo "fuzz: no atheris for $$($(BIN)/python --version)"
	@$(BIN)/python -m fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(VALUES),--values $(VALUES)) \
		$(if $(SEED),--seed $(SEED)) $(foreach name,$(TARGET),--target $(name))

soak: $(READY)
	@$(BIN)/python -m soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DAYS),--days $(DAYS)) \
		$(if $(NODES),--nodes $(NODES)) $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(STORE),--store $(STORE)) \
		$(if $(TLS),--tls)

clean:
	rm -rf .run bench/out chaos/out soak/out
