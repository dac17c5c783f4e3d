/* sluice serve with a worker that answers as a script says: see scripted_worker.c. */
#include "tools/cli/commands.h"

int main(int argc, char **argv)
{
    return sl_cmd_serve(argc, argv);
}
