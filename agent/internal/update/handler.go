package update

import (
	"context"
	"fmt"
	"io"

	"github.com/tillward/tillward/provisioning/trust"
)

// Job is a release on its way into the box: what it is has been verified, and
// so has the content when it lies in File.
type Job struct {
	Execution string
	Component string // agent, os/{model}/{channel}, ops/{tenant}/{name}
	Version   string
	Target    trust.Target
	File      string      // the whole content, verified; empty when it is to be streamed
	Content   io.ReaderAt // of a stream: fetched as it is read, not verified before the end
}

// Move is a step of a trial.
type Move int

// The moves. A power cut may fall anywhere in one: it is made again, and must
// bear it.
const (
	Try   Move = iota // make what was staged the one that runs next, on trial
	Prove             // nil when what runs does its work; asked until it does, or time is up
	Keep              // end the trial: it stays
	Back              // end the trial: what ran before it runs again
)

// Effect is what has to happen for a move to count.
type Effect int

// The effects.
const (
	None    Effect = iota
	Restart        // of the agent
	Reboot         // of the box
)

// Truth is what runs, as found and not as hoped.
type Truth struct {
	Version string // empty: nothing of the component
	Slot    string
	Hash    string // hex, of what was installed
	Trial   bool   // it has not proved itself
	Failed  string // why a trial was ended without us: by the launcher, the boot loader

	Execution string // whose trial it is, where that is known
}

// Handler installs one class of artifact. Whatever it does it can do again
// after a power cut at any instruction, and what ran before stays whole until
// Keep.
type Handler interface {
	// Stage writes the content beside what runs and verifies what the disk gives back.
	Stage(ctx context.Context, j Job) error
	// Move takes the trial a step further.
	Move(ctx context.Context, j Job, m Move) (Effect, error)
	// Running says what runs of a component.
	Running(ctx context.Context, component string) (Truth, error)
}

// Refuse returns an error that ends the execution as REJECTED: trying again
// does not help. The reason is a code for machines.
func Refuse(reason, format string, args ...any) error {
	return &refusal{rejected, reason, fmt.Errorf(format, args...)}
}

// Fail returns an error that ends the execution as FAILED.
func Fail(reason, format string, args ...any) error {
	return &refusal{failed, reason, fmt.Errorf(format, args...)}
}

// Hold returns an error that makes the execution wait, and be tried again: the
// reason is a code for machines.
func Hold(reason, format string, args ...any) error {
	return &hold{reason, fmt.Sprintf(format, args...)}
}
