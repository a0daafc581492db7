package spool

// WriteBackEvery makes the log short, so that it is written back often.
func WriteBackEvery(frames int64) { logFrames = frames }

// SyncOff has SQLite sync nothing.
func SyncOff() { synchronous = "OFF" }

// Fallocate has the file system answer so until the test ends.
func Fallocate(t interface{ Cleanup(func()) }, answers ...error) {
	was := fallocate
	fallocate = func(fd int, mode uint32, off, size int64) error {
		if len(answers) == 0 {
			return was(fd, mode, off, size)
		}
		err := answers[0]
		answers = answers[1:]
		return err
	}
	t.Cleanup(func() { fallocate = was })
}

// CopyIn reads a place of the copies of heads.
var CopyIn = copyIn

// BreakSync has nothing synced any more.
func BreakSync(s *Spool) { _ = s.flash.wal.Close() }
