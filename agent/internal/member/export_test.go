package member

import "time"

// Sleep is how long Run sleeps before it looks at the clock again.
func Sleep(next time.Time) time.Duration { return (&Keeper{Wall: time.Now}).sleep(next) }
