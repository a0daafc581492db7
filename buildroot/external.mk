# What board/tillward/post-build.sh and post-image.sh get to know. The prefix
# keeps the names from the packages: an exported VERSION would reach them all.
export TILLWARD_VERSION = $(call qstrip,$(BR2_TILLWARD_VERSION))
export TILLWARD_MODEL = $(call qstrip,$(BR2_TILLWARD_MODEL))
export TILLWARD_COMPATIBLE = $(call qstrip,$(BR2_TILLWARD_COMPATIBLE))
export TILLWARD_CONSOLE = $(if $(BR2_TILLWARD_CONSOLE),yes,no)
export TILLWARD_VENDOR = $(call qstrip,$(BR2_TILLWARD_VENDOR_DIR))
export TILLWARD_EFI_STUB = $(call qstrip,$(BR2_TILLWARD_EFI_STUB))
export TILLWARD_PROVISION = $(call qstrip,$(BR2_TILLWARD_PROVISION))
export TILLWARD_BOOT_JSON = $(call qstrip,$(BR2_TILLWARD_BOOT_JSON))
export TILLWARD_RAUC_CERT = $(call qstrip,$(BR2_TILLWARD_RAUC_CERT))
export TILLWARD_RAUC_KEY = $(call qstrip,$(BR2_TILLWARD_RAUC_KEY))

include $(sort $(wildcard $(BR2_EXTERNAL_TILLWARD_PATH)/package/*/*.mk))
