package cloud

import "github.com/tillward/tillward/cloud/internal/rollout"

// PlannerStep returns a step of the rollout planner over so many devices, for
// whoever measures what one costs: the first, in which every device is assigned
// its wave, or one in the middle.
func PlannerStep(devices int, first bool) func() {
	step := rollout.Large(devices, first)
	return func() { step() }
}
