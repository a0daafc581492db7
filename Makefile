# Tillward. `make` alone lists the words.

# Always a semantic version: v1.2.3 -> 1.2.3, before the first tag 0.1.0-g1234abc, without git 0.1.0.
GIT     := $(shell git describe --tags --always --dirty 2>/dev/null)
VERSION ?= $(or $(if $(findstring .,$(GIT)),$(GIT:v%=%),$(addprefix 0.1.0-g,$(GIT))),0.1.0)
NEXT    := $(shell echo $(VERSION) | awk -F '[.-]' '{ print $$1 "." $$2 "." $$3 + 1 }')
TAGS    := sqlite_omit_load_extension netgo osusergo
LINT    := .cache/bin/golangci-lint-2.15.0
PEERS   := simulator/peers/node_modules/.package-lock.json
STEP_CA := .cache/bin/step-ca-0.30.2
CYCLONE := .cache/bin/cyclonedx-gomod-1.9.0
NG      := .cache/syslog-ng
PROM    := .cache/prometheus

# One folder per machine type: bin/ for this one, bin/arm64/ and the like for the others.
HOST    := $(or $(shell go env GOHOSTARCH),$(error Tillward is built with Go 1.26 or newer: https://go.dev/dl))
GOARCH  ?= $(HOST)
BIN     := bin$(if $(filter-out $(HOST),$(GOARCH)),/$(GOARCH))
CC_arm64 := aarch64-linux-gnu-gcc
CC_amd64 := x86_64-linux-gnu-gcc

NEED_BUILD := gcc libc6-dev nodejs npm
NEED_RUN   := $(NEED_BUILD) swtpm swtpm-tools '?pcscd' '?vsmartcard-vpcd'
NEED_TEST  := $(NEED_BUILD) swtpm swtpm-tools pcscd vsmartcard-vpcd pcsc-tools softhsm2 openssl chromium rauc dbus-daemon squashfs-tools mount e2fsprogs strace postgresql rsyslog rsyslog-openssl liblognorm-utils $(NEED_BR)
NEED_BR    := busybox-static rsync git shellcheck genimage fdisk dosfstools mtools e2fsprogs rauc squashfs-tools openssl
NEED_TREE  := $(NEED_BR) build-essential bc file python3 python3-magic flake8 rsync unzip wget cpio $(if $(KERNEL),flex bison)
NEED_VM    := gcc libc6-dev make xz-utils qemu-system-x86 busybox-static
NEED_FW    := gcc libc6-dev '?qemu-system-x86' '?qemu-utils' swtpm mtools dosfstools squashfs-tools cryptsetup-bin genimage rauc cpio zstd xz-utils kmod binutils e2fsprogs fdisk openssl debian-archive-keyring
NEED_arm64 := gcc-aarch64-linux-gnu libc6-dev-arm64-cross
NEED_amd64 := gcc-x86-64-linux-gnu libc6-dev-amd64-cross

GO_BUILD := go build -trimpath -tags "$(TAGS)"
# Most of an agent's memory is the agent: SQLite and Go small rather than fast -
# without inlining, but where content is cut into chunks byte by byte - and no
# HTTP/2, which it neither asks for nor serves.
GO_AGENT := CGO_ENABLED=1 CGO_CFLAGS=-Os go build -trimpath -gcflags=all=-l -gcflags=github.com/restic/chunker= -tags "$(TAGS) nethttpomithttp2"
SHRINK   := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: run test test-chaos test-powercut test-hal-vm test-firmware test-siem check lint build console bench image check-buildroot defconfigs release sbom step-ca help FORCE

run: ## five tills, their fleet service and the console, on this machine
	@.ci/deps $(NEED_RUN)
	@$(MAKE) --no-print-directory build
	bin/tillward-sim run --tills 5 --receipts bin/receipts

test: ## every test, with whatever they need installed first (RACE=-race for the race detector)
	@.ci/deps $(NEED_TEST)
	@$(MAKE) --no-print-directory build $(PEERS) $(NG) $(PROM)
	go test $(RACE) -tags "$(TAGS)" -timeout 12m ./...
	bin/tillward-sim run --scenario counter-day --report bin/counter-day.json

test-powercut: ## the power goes 200 times in the middle of updates, and at each write of the spool; takes its time, and root for loop devices
	@.ci/deps $(NEED_RUN) mount e2fsprogs strace
	@$(MAKE) --no-print-directory build bin/powercut/tillward-agent >&2
	@bin/tillward-sim run --scenario powercut --cuts 200 --seed 1 --report bin/powercut/report.json
	go test -trimpath -tags "$(TAGS)" -count=1 -v -timeout 60m -run TestPowerCutAtEveryCall ./agent/internal/spool -cuts 1

test-chaos: ## 20 tills and their service, 10 minutes of everything that can go wrong; root for disks and a network of its own (SEED=2 for another plan)
	@.ci/deps $(NEED_RUN)
	@$(MAKE) --no-print-directory build >&2
	@bin/tillward-sim run --scenario chaos --tills 20 --for 10m --seed $(or $(SEED),1) --report bin/chaos.json

test-hal-vm: ## the drivers on a real kernel that QEMU runs, with USB, evdev and GPIO of its own: docs/hal-vm.md
	@.ci/deps $(NEED_VM)
	@go run -trimpath ./simulator/cmd/tillward-halvm $(ARGS)

# Packages of the till are downloaded once, into .cache/firmware: docs/firmware-test.md.
test-firmware: ## whole tills that QEMU boots by UEFI and TPM: enrolled, updated, broken in many ways, back by themselves; 8 minutes (RUN=TestFirmware/tills/till-1/update for a part, IMAGE=path for an image of Buildroot, DEBIAN=forky for tills of another Debian)
	@.ci/deps $(NEED_RUN) $(NEED_FW)
	@$(MAKE) --no-print-directory build >&2
	go test -trimpath -count=1 -v -parallel 3 -timeout 40m -tags "$(TAGS) firmware" -run '$(or $(RUN),TestFirmware)' ./simulator/firmware -bin $(abspath bin) -cache $(abspath .cache/firmware) -report $(abspath bin/firmware.json) $(if $(IMAGE),-image $(abspath $(IMAGE))) $(if $(DEBIAN),-debian $(DEBIAN))
	@command -v qemu-system-x86_64 >/dev/null || echo 'test-firmware: SKIPPED, no till was booted: there is no QEMU here. Get it: sudo apt-get install qemu-system-x86' >&2

test-siem: $(NG) ## 20,000 events to rsyslog and syslog-ng across two restarts of each
	@.ci/deps $(NEED_TEST)
	go test $(RACE) -tags "$(TAGS)" -count=1 -v -timeout 12m -run TestRestarts ./cloud/internal/export -events 20000

# Debian lets nobody install syslog-ng beside rsyslog.
$(NG):
	@.ci/unpack $@ syslog-ng-core

# Installed it would be started.
$(PROM):
	@.ci/unpack $@ prometheus

check: lint ## what CI runs: lint, then the same tests under the race detector
	@$(MAKE) --no-print-directory test RACE=-race

# -trimpath, so that it finds SQLite in the build cache as `build` left it, or leaves it there.
lint: $(LINT) console ## golangci-lint over the Go, the type checker over the console
	@.ci/deps $(NEED_BUILD)
	GOFLAGS="$(GOFLAGS) -trimpath" $(LINT) run ./...
	cd cloud/console && npm run --silent --if-present check

ifeq ($(GOARCH),$(HOST))
build: $(addprefix bin/,tillward-agent next/tillward-agent tillward tillward-provision tillward-sim) ## all binaries into bin/; GOARCH=arm64 makes bin/arm64/tillward-agent
else
build: $(BIN)/tillward-agent
endif

# The one binary that goes into the image: static, stripped, C library included.
$(BIN)/tillward-agent: FORCE
	@.ci/deps $(if $(filter $(HOST),$(GOARCH)),gcc libc6-dev,$(NEED_$(GOARCH)))
	GOARCH=$(GOARCH) $(if $(filter-out $(HOST),$(GOARCH)),CC=$(CC_$(GOARCH))) \
	$(GO_AGENT) -ldflags '$(SHRINK) -linkmode external -extldflags -static' -o $@ ./agent/cmd/tillward-agent

# The same agent with a higher version: what the simulator updates its tills to.
bin/next/tillward-agent: bin/tillward-agent
	$(GO_AGENT) -ldflags '-s -w -X main.version=$(NEXT) -linkmode external -extldflags -static' -o $@ ./agent/cmd/tillward-agent

# And one whose version the power cuts count up, in the binary.
bin/powercut/tillward-agent: bin/tillward-agent
	$(GO_AGENT) -ldflags '-s -w -X main.version=$(basename $(NEXT)).1000000 -linkmode external -extldflags -static' -o $@ ./agent/cmd/tillward-agent

bin/tillward: console FORCE
	$(GO_BUILD) -ldflags '$(SHRINK)' -o $@ ./cloud/cmd/tillward

bin/tillward-provision: FORCE
	$(GO_BUILD) -ldflags '$(SHRINK)' -o $@ ./provisioning/cmd/tillward-provision

bin/tillward-sim: console FORCE
	$(GO_BUILD) -ldflags '$(SHRINK)' -o $@ ./simulator/cmd/tillward-sim

console: cloud/console/dist/index.html ## the web app that `tillward serve` carries, into cloud/console/dist

# The console's tools, and the programs of others that tests ask.
%/node_modules/.package-lock.json: %/package-lock.json
	@.ci/deps nodejs npm
	cd $* && npm ci --no-audit --no-fund >&2
	@touch $@

cloud/console/dist/index.html: cloud/console/node_modules/.package-lock.json $(shell find cloud/console \
		\( -name node_modules -o -name dist \) -prune -o -type f ! -name '*.go' ! -name '*.tsbuildinfo' -print 2>/dev/null)
	cd cloud/console && npm run build >&2
	@touch $@

bench: ## the numbers that must not rot, as JSON lines
	@.ci/deps $(NEED_RUN)
	@$(MAKE) --no-print-directory build >&2
	@bin/tillward-sim bench

image: $(if $(BUILDROOT),bin/tillward-provision $(CYCLONE)) ## the image of a box, with a Buildroot you bring: BOARD=pc_x86_64 BUILDROOT=path VENDOR=folder; docs/vendor.md
	@BOARD='$(BOARD)' BUILDROOT='$(BUILDROOT)' VENDOR='$(VENDOR)' VERSION='$(VERSION)' OUT='$(OUT)' MODEL='$(MODEL)' COMPATIBLE='$(COMPATIBLE)' \
	CONSOLE='$(CONSOLE)' STUB='$(STUB)' BOOT_JSON='$(BOOT_JSON)' RAUC_CERT='$(RAUC_CERT)' RAUC_KEY='$(RAUC_KEY)' RELEASE='$(RELEASE)' \
	EXTERNAL='$(EXTERNAL)' CONFIG='$(CONFIG)' CYCLONE=$(CYCLONE) buildroot/image.sh

check-buildroot: ## buildroot/ by itself, and against BUILDROOT=path where given (KERNEL=path for a Linux, too); ARGS=--json
	@.ci/deps $(if $(BUILDROOT),$(NEED_TREE),$(NEED_BR))
	@go run -trimpath ./simulator/cmd/tillward-brcheck $(if $(BUILDROOT),--tree '$(BUILDROOT)') $(if $(KERNEL),--kernel '$(KERNEL)') $(ARGS)

defconfigs: ## the configurations of buildroot/configs, from their fragments
	@go run -trimpath ./simulator/cmd/tillward-brcheck --write

release: ## the source of this version with its Go modules, for Buildroot: dist/tillward-VERSION.tar.gz and its hash
	@.ci/deps rsync git
	@buildroot/release.sh '$(VERSION)' dist

sbom: $(CYCLONE) $(BIN)/tillward-agent ## what is in the agent, as CycloneDX: dist/tillward-agent-VERSION.cdx.json
	@mkdir -p dist
	@buildroot/sbom.sh $(CYCLONE) '$(VERSION)' $(BIN)/tillward-agent dist/tillward-agent-$(VERSION).cdx.json
	@echo dist/tillward-agent-$(VERSION).cdx.json

step-ca: $(STEP_CA) ## an authority below a real step-ca, which is built first and takes minutes: not part of `test`
	STEP_CA=$(abspath $(STEP_CA)) go test $(RACE) -count=1 -tags "$(TAGS) stepca" ./provisioning/ca/step

$(STEP_CA):
	@echo "building step-ca, once" >&2
	CGO_ENABLED=0 GOBIN=$(abspath .cache/bin) go install github.com/smallstep/certificates/cmd/step-ca@v$(lastword $(subst -, ,$@))
	@mv .cache/bin/step-ca $@

$(CYCLONE):
	@echo "building cyclonedx-gomod, once" >&2
	CGO_ENABLED=0 GOBIN=$(abspath .cache/bin) go install -trimpath github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v$(lastword $(subst -, ,$@))
	@mv .cache/bin/cyclonedx-gomod $@

# Built once from source: the version is part of the name, so a new one is a new file.
$(LINT):
	@echo "building golangci-lint, once" >&2
	GOBIN=$(abspath .cache/bin) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(lastword $(subst -, ,$@))
	@mv .cache/bin/golangci-lint $@

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
