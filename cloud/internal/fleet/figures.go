package fleet

import "time"

// Figure sums up what was answered in a span of time, and how fast.
type Figure struct {
	At         time.Time     // the beginning of the span
	Span       time.Duration // its length; of a total, as long as the service ran
	OK         uint64        // done; HTTP 2xx
	Redirected uint64        // HTTP 3xx, "not modified" above all
	Refused    uint64        // the fault of who asked; HTTP 4xx
	Failed     uint64        // ours; HTTP 5xx
	Bytes      uint64        // of the answers, or of what came
	// Response times that half, 95 and 99 of a hundred stayed below; 0: nothing
	// was timed.
	P50, P95, P99 time.Duration
}

// Answers is how many there were of all outcomes.
func (f Figure) Answers() uint64 { return f.OK + f.Redirected + f.Refused + f.Failed }

// PartFigures are the figures of a part of the service, or with an Op of one
// thing that it does.
type PartFigures struct {
	Part, Op string
	Total    Figure
	Points   []Figure // by time; a span without a point: the service did not run
}

// FigureQuery asks for figures. A zero From is an hour before To, a zero To is
// now, and a zero Step is what fits.
type FigureQuery struct {
	Part, Op string // empty: all
	From, To time.Time
	Step     time.Duration
}

// FigureRow is what one part answered in one span, as it is kept.
type FigureRow struct {
	Part string
	Step time.Duration
	At   time.Time
	Body []byte
}

// How a part of the service is.
const (
	PartOK       = "ok"
	PartDegraded = "degraded" // it works, and somebody should look
	PartFailing  = "failing"  // it does not do what it is there for
)

// WorstPart is the worst state of all parts.
func WorstPart(all []PartHealth) string {
	worst := PartOK
	for _, p := range all {
		if p.State == PartFailing || p.State == PartDegraded && worst == PartOK {
			worst = p.State
		}
	}
	return worst
}

// PartHealth is how a part of the service is, since when, and what to do.
type PartHealth struct {
	Part  string
	State string
	Since time.Time
	What  string // in a sentence, with the numbers that matter
	Todo  string // empty when there is nothing to do
}
