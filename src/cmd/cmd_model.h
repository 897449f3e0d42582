/* cmd_model.h - `moebatch model make` (a random-weight checkpoint) and `moebatch model show`
 * (architecture and sizes of one). argv[0] is "model". Needs no MPI.
 */
#ifndef CMD_CMD_MODEL_H
#define CMD_CMD_MODEL_H

#include "core/status.h"

enum status cmd_model(int argc, char **argv);

#endif
