package haltest

import "time"

// Hurry makes the suite wait less for what will not come.
func Hurry(d time.Duration) { patience = d }
