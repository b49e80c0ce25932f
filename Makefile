# The commands of the README. Each target is a few plain commands that also work by hand.
SHELL      := bash
.SHELLFLAGS := -o pipefail -c
GO         := go
BIN        := bin
K8S        := test/kubernetes
LDFLAGS    := -s -w
# -race needs a C compiler.
RACE       := $(shell CGO_ENABLED=1 $(GO) env CC | xargs -I{} sh -c 'command -v {} >/dev/null 2>&1 && echo -race')
PYTHON     := $(shell python3 -c 'import sys, venv; print(sys.version_info >= (3, 10) or "")' 2>/dev/null)
ifdef SHORT
SHORTFLAG  := -short
endif

.PHONY: build test test-guards attack lint vuln demo bench fuzz quickstart clean apiserver

# Static: the program starts itself where the loader and libraries of the host are not.
build: $(BIN)/remit

$(BIN)/remit: $(shell find . -name '*.go' -not -path './test/*') go.mod go.sum
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/remit

# The Kubernetes API server and kubectl of the nested module: about 13 CPU-minutes the first time, seconds afterwards.
apiserver: $(BIN)/remit-test-apiserver $(BIN)/kubectl

$(BIN)/remit-test-apiserver: $(wildcard $(K8S)/apiserver/*.go) $(K8S)/go.mod
	@.ci/progress "compiling the Kubernetes API server (the first time 6 to 10 minutes on two cores)" \
	  $(GO) -C $(K8S) build -ldflags '$(LDFLAGS)' -o $(abspath $@) ./apiserver

$(BIN)/kubectl: $(wildcard $(K8S)/kubectl/*.go) $(K8S)/go.mod
	@mkdir -p $(BIN); if [ -z "$$FORCE_KUBECTL" ] && command -v kubectl >/dev/null; then ln -sf "$$(command -v kubectl)" $@; else \
	  .ci/progress "compiling kubectl" $(GO) -C $(K8S) build -ldflags '$(LDFLAGS) -X k8s.io/component-base/version.gitVersion=v1.37.2' \
	  -o $(abspath $@) ./kubectl; fi

# Real peers from npm that tests run beside us, in pinned versions: an OpenID provider.
.PHONY: node
node: test/node/node_modules/.package-lock.json

test/node/node_modules/.package-lock.json: test/node/package.json test/node/package-lock.json
	npm --prefix test/node ci --no-fund --no-audit
	@touch $@

# PostgreSQL, which tests start as an ordinary user: the distribution's package, where it is missing and can be installed.
.PHONY: postgres
postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || { \
	  command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get install -y -q --no-install-recommends postgresql postgresql-contrib; } || \
	  echo "PostgreSQL is not installed, and cannot be: what needs it is skipped, and says so"

# Frameworks in Python that tests let talk to the gateway, in pinned versions; uv installs them in seconds, pip in minutes. CrewAI is
# 900 MB: make test-clients installs and tries it, make test does not.
$(BIN)/venv/%/.done: test/clients/%.txt
	rm -rf $(@D) && python3 -m venv $(@D) && $(@D)/bin/pip install -q uv==0.13.9
	$(@D)/bin/uv pip install -q --compile-bytecode --python $(@D)/bin/python -r $<
	@touch $@

.PHONY: test-clients
test-clients: $(BIN)/remit node $(BIN)/venv/langchain/.done $(BIN)/venv/crewai/.done
	REMIT_TEST_BINARY=$(abspath $(BIN)/remit) $(GO) test ./test/clients -count=1 -v

# Everything, against real parts. SHORT=1 leaves out what needs the API server.
test: $(BIN)/remit node $(if $(SHORT),,$(if $(PYTHON),$(BIN)/venv/langchain/.done)) postgres $(if $(SHORT),,apiserver $(BIN)/opa)
	@[ -n "$(RACE)" ] || echo "no C compiler: running without -race"
	$(if $(RACE),$(if $(SHORT),,$(GO) test -timeout 30m -run '^TestPlanEqualsRego$$' ./internal/policy))
	$(if $(SHORT),,OPA=$(abspath $(BIN)/opa)) $(GO) test $(RACE) $(SHORTFLAG) -timeout 30m -json ./... | $(GO) run ./test/report -skips test/skips.txt $(SHORTFLAG)

# Switches every guard of the security model off in turn and demands that its tests fail. GUARDS='-rule S11', '-part 1/4',
# '-list'; what needs the API server is reported as not run where it is not built.
test-guards:
	$(GO) run ./test/guards $(SHORTFLAG) $(GUARDS)

# The attacks of test/attack/scripts against a laboratory with this binary; needs root, for users of the agents' own. Those that need
# the API server are run where it is built (make apiserver). ATTACK='-run S10', '-profile FILE', '-list', '-v'.
attack: $(BIN)/remit
	$(GO) run ./test/attack -remit $(BIN)/remit $(if $(wildcard $(BIN)/remit-test-apiserver),-cluster) $(ATTACK)

lint: $(BIN)/staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(BIN)/staticcheck ./...
	$(GO) run ./test/guards -check

# Known vulnerabilities; "not run" where no database is reachable.
vuln: $(BIN)/govulncheck
	@.ci/vuln $(BIN)/govulncheck

$(BIN)/govulncheck: test/tools/go.mod
	$(GO) -C test/tools build -o $(abspath $@) golang.org/x/vuln/cmd/govulncheck

$(BIN)/staticcheck: test/tools/go.mod
	$(GO) -C test/tools build -o $(abspath $@) honnef.co/go/tools/cmd/staticcheck

# The support desk: a hijacked orchestrator, four tools in gVisor sandboxes, an internal API; needs root and python3.
.PHONY: demo-tools
demo-tools: $(BIN)/remit node
	$(GO) run ./test/support -remit $(BIN)/remit

# One customer's refund: rows by PostgreSQL, a second person by an OpenID provider, three tools in gVisor sandboxes; needs root.
.PHONY: demo-refund
demo-refund: $(BIN)/remit node postgres
	$(GO) run ./test/refund -remit $(BIN)/remit

# The mail agent is taken over and looks around in a financial database: noticed, explained, ended, reported; needs root.
.PHONY: demo-takeover
demo-takeover: $(BIN)/remit postgres
	$(GO) run ./test/takeover -remit $(BIN)/remit -report $(BIN)/takeover-report.md

demo: $(BIN)/remit $(if $(filter own,$(CLUSTER)),$(BIN)/kubectl,apiserver)
	$(GO) run ./test/demo -remit $(BIN)/remit -apiserver $(BIN)/remit-test-apiserver -kubectl $(BIN)/kubectl

# Remit beside its peers, in one run; SHORT=1 leaves out what needs the API server.
bench: $(BIN)/remit $(BIN)/opa $(BIN)/fsck $(if $(SHORT),,apiserver)
	$(GO) run ./test/bench $(SHORTFLAG)

# Recorded runs of real agents, honest and hijacked, through a running gateway: docs/evaluation.md says what DIR has to hold.
.PHONY: eval
eval:
	@[ -n "$(DIR)" ] || { echo "make eval DIR=FOLDER: see docs/evaluation.md"; exit 2; }
	$(GO) run ./test/eval agentdojo $(DIR) $(EVAL)

quickstart: $(BIN)/remit
	$(BIN)/remit quickstart

clean:
	rm -rf $(BIN)

# Every fuzz target for FUZZTIME each; FUZZFLAGS='-parallel=1' is kind to a machine that does other things, too.
FUZZTIME  ?= 10s
FUZZFLAGS ?=
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do dir=$${pkg#remit}; dir=.$${dir}; \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9]+' $$dir/*_test.go 2>/dev/null | sed 's/func //'); do \
	    echo "== $$pkg $$f"; $(GO) test $$pkg -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $(FUZZFLAGS); done; done

# Peers and judges that tests and benchmarks run beside us.
$(BIN)/opa: test/peers/go.mod
	$(GO) -C test/peers build -o $(abspath $@) github.com/open-policy-agent/opa

$(BIN)/fsck: test/peers/go.mod
	$(GO) -C test/peers build -o $(abspath $@) github.com/transparency-dev/tessera/cmd/fsck
