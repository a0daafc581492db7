package board

import (
	"context"
	"errors"
	"time"
)

// answersWithin is how long a call into the kernel is waited for.
const answersWithin = time.Second

var errPanicked = errors.New("what the kernel said was too much for this driver")

// errStuck is a call that has not ended.
var errStuck = errors.New("the kernel does not answer")

// stuck is closed when a call that took too long has ended; nil: there is none.
type stuck chan struct{}

// patiently calls do. The kernel may hold a call to a bus for as long as it
// likes: it is then left behind, and nothing more is asked until it has ended.
// What it brings then goes to late.
func patiently[T any](ctx context.Context, s *stuck, do func() (T, error), late func(T)) (T, error) {
	var none T
	if *s != nil {
		select {
		case <-*s:
			*s = nil
		default:
			return none, errStuck
		}
	}
	type answer struct {
		v   T
		err error
	}
	answers, ended, left := make(chan answer), make(stuck), make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if recover() != nil {
				select {
				case answers <- answer{none, errPanicked}:
				case <-left:
				}
			}
		}()
		v, err := do()
		select {
		case answers <- answer{v, err}:
		case <-left:
			if err == nil {
				late(v)
			}
		}
	}()
	timeout := time.NewTimer(answersWithin)
	defer timeout.Stop()
	defer close(left)
	select {
	case a := <-answers:
		return a.v, a.err
	case <-ctx.Done():
		*s = ended
		return none, ctx.Err()
	case <-timeout.C:
		*s = ended
		return none, errStuck
	}
}
