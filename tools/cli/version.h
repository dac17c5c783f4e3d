/* The version, which has one source: the file VERSION, read by the Makefile. */
#ifndef SL_TOOLS_CLI_VERSION_H
#define SL_TOOLS_CLI_VERSION_H

extern const char sl_version[];      /* "0.1.0" */
extern const char sl_version_line[]; /* "sluice 0.1.0" */

#endif
