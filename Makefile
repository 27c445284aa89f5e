# Lanyard. `make` alone prints help; `make demo` and `make test` need nothing but Go and (for a real node) root on Debian 12.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# One set of build flags, so that product, tests and lab share one build cache.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATE    := $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
STATE   ?= $(CURDIR)/.lab
TOOL    := go tool -modfile=go.tools.mod

# The packages that import Kubernetes cost minutes under the race detector: they get it in `make presubmit` only.
RACE := ./api/workloadidentity ./cmd/workload ./deploy ./internal/azure/... ./internal/arm/... ./internal/azrbac/... ./internal/binding/... ./internal/cloud/... \
	./internal/credential/... ./internal/entra/... ./internal/federated/... ./internal/graph/... ./internal/imds/... ./internal/lab/image ./internal/lab/netns ./internal/lab/process ./internal/oidc/... ./internal/proxy/... ./internal/redirect/... ./internal/sandbox/... ./internal/schedule/... ./internal/token/...

##@ Start here

.PHONY: help
help: ## print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: build ## build everything, start it, play the story, print a table, stop
	@bin/lanyard demo

.PHONY: test
test: build ## set up what the tests need and pass every test
	@.ci/gotest ./...
	@echo "the same under the race detector, for the packages without Kubernetes imports"
	@CGO_ENABLED=1 .ci/gotest -race $(RACE)
	@cd deploy/charts && $(CURDIR)/.ci/gotest ./...
	@cd lab/kubernetes && $(CURDIR)/.ci/gotest ./...

.PHONY: lab
lab: build ## start the same lab as the demo and leave it up (STATE=DIR, default .lab)
	@bin/lanyard lab up --detach --state $(STATE)

##@ Develop

.PHONY: build
build: requirements bin/kube binaries ## build every binary into bin/

.PHONY: binaries
binaries:
	@mkdir -p bin
	@go build -ldflags "$(LDFLAGS)" -o bin/ ./cmd/...
	@ln -sf lanyard bin/kubectl-lanyard

.PHONY: requirements
requirements: ## install the Debian packages that are needed (root; otherwise say what is missing)
	@lab/requirements race

.PHONY: bin/kube
bin/kube:
	@lab/kubernetes/build

.PHONY: bin/kwok
bin/kwok:
	@go build -C lab/kwok -ldflags "-s -w" -o $(CURDIR)/bin/kwok sigs.k8s.io/kwok/cmd/kwok

.PHONY: bench
bench: build bin/kwok ## measure what the documents state, beside v1 (root)
	@bin/bench $(BENCH)
	@echo "Go benchmarks of single packages"
	@go test -run '^$$' -bench . -benchmem ./internal/... | grep -v -e '^ok' -e 'no test files'

.PHONY: soak
soak: build ## rotate the issuer's key under real pods, nothing shortened: 13 minutes (root)
	@go test -tags soak -count=1 -v -timeout 40m -run '^TestTheKubeletRefreshes' ./internal/estate/keyrotation

.PHONY: lint
lint: ## check style and find mistakes
	@$(TOOL) golangci-lint run ./...
	@for module in deploy/charts lab/kubernetes; do \
		(cd $$module && go tool -modfile=$(CURDIR)/go.tools.mod golangci-lint run --config $(CURDIR)/.golangci.yml ./...); \
	done

.PHONY: generate
generate: ## write the generated files (deepcopy, CRDs, the chart's copies of them, manifests)
	@go generate ./...
	@cd deploy/charts && go generate ./...

.PHONY: verify
verify: ## fail if a generated or formatted file differs from what is committed
	@.ci/verify

.PHONY: presubmit
presubmit: lint verify test ## everything, with the race detector on every package
	@CGO_ENABLED=1 .ci/gotest -race ./...

.PHONY: clean
clean: ## stop the lab of STATE and remove what was built
	@if [ -x bin/lanyard ] && [ -e $(STATE) ]; then bin/lanyard lab down --state $(STATE); fi
	@rm -rf bin
