#include "tools/cli/version.h"

const char sl_version[] = SL_VERSION; /* from the Makefile */
const char sl_version_line[] = "sluice " SL_VERSION;
