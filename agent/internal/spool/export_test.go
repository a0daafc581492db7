package spool

// WriteBackEvery makes the log short, so that it is written back often.
func WriteBackEvery(frames int64) { logFrames = frames }

// SyncOff has SQLite sync nothing.
func SyncOff() { synchronous = "OFF" }

// CopyIn reads a place of the copies of heads.
var CopyIn = copyIn

// BreakSync has nothing synced any more.
func BreakSync(s *Spool) { _ = s.flash.wal.Close() }
