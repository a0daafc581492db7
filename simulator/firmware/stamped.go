package firmware

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

// Stamped puts before each line how many seconds of the processor a machine had
// taken when the line began.
type Stamped struct {
	Out io.Writer
	CPU func() time.Duration

	inside bool // a line
}

func (s *Stamped) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		if !s.inside {
			if _, err := fmt.Fprintf(s.Out, "%7.2f ", s.CPU().Seconds()); err != nil {
				return 0, err
			}
		}
		s.inside = !bytes.HasSuffix(line, []byte("\n"))
		if _, err := s.Out.Write(line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
