// The operations as a team calls them: see team.h. Each returns what the function that is called from outside does.
#pragma once

#include "activation.h"
#include "attention.h"
#include "elements.h"
#include "heads.h"
#include "linear.h"
#include "norm.h"
#include "team.h"

namespace penstock {

int linear(const PenstockLinear& a, Team& team);
int attention(const PenstockAttention& a, Team& team);
int heads(const PenstockHeads& a, Team& team);
int norm(const PenstockNorm& a, Team& team);
int activate(const PenstockActivation& a, Team& team);
int unpack(const PenstockUnpack& a, Team& team);
int take(const PenstockTake& a, Team& team);
int elements(const PenstockElements& a, Team& team);
int tiles(const PenstockTiles& a, Team& team);

int64_t linear_scratch(const PenstockLinear& a);  // bytes that a team needs, see TeamState

}  // namespace penstock
