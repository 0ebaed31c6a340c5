// What every machine of the architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#define SPML_ISA baseline
#define SPML_TABLE kCpuBaseline
#include "core/isa_table.h"
