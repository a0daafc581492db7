################################################################################
#
# tillward-agent
#
################################################################################

TILLWARD_AGENT_VERSION = $(call qstrip,$(BR2_TILLWARD_VERSION))
TILLWARD_AGENT_LICENSE = Apache-2.0
TILLWARD_AGENT_LICENSE_FILES = LICENSE

ifeq ($(BR2_PACKAGE_TILLWARD_AGENT_RELEASE),y)
TILLWARD_AGENT_SITE = $(call qstrip,$(BR2_PACKAGE_TILLWARD_AGENT_SITE))
TILLWARD_AGENT_SOURCE = tillward-$(TILLWARD_AGENT_VERSION).tar.gz
else
TILLWARD_AGENT_SITE = $(call qstrip,$(BR2_PACKAGE_TILLWARD_AGENT_SOURCE_DIR))
TILLWARD_AGENT_SITE_METHOD = local
endif

# As `make build` does it: static, small rather than fast, and without HTTP/2.
# Updates bring an agent built there, and it must start on this image.
TILLWARD_AGENT_GOMOD = github.com/tillward/tillward
TILLWARD_AGENT_BUILD_TARGETS = agent/cmd/tillward-agent
TILLWARD_AGENT_TAGS = \
	sqlite_omit_load_extension \
	netgo \
	osusergo \
	nethttpomithttp2
TILLWARD_AGENT_BUILD_OPTS = -gcflags=all=-l -gcflags=github.com/restic/chunker=
TILLWARD_AGENT_LDFLAGS = \
	-s -w \
	-X main.version=$(TILLWARD_AGENT_VERSION) \
	-linkmode external
TILLWARD_AGENT_EXTLDFLAGS = -static
TILLWARD_AGENT_GO_ENV = CGO_CFLAGS="$(TARGET_CFLAGS) -Os"

$(eval $(golang-package))
