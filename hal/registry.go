package hal

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Passthrough is a printer that prints what somebody else composed. It is
// there in claim mode own only. The job is never stored nor logged. A nil
// error means that the printer has confirmed the last byte, or, where it
// cannot confirm, that it took the job and shows no fault; Job says which.
type Passthrough interface {
	Print(ctx context.Context, job io.Reader) (Job, error)
}

// Job is what a printer made of a job, also of one that failed.
type Job struct {
	Bytes     int64 // handed to the printer
	Cuts      int   // asked for in it
	Kicks     int   // of the drawer, asked for in it
	Confirmed bool  // the printer has said that all of it came out
}

// Tunneler is a printer that a POS application may talk to as if it held the
// cable itself: jobs go through, and what it asks about the status is answered
// from what the driver knows. Several may talk at once, and Print beside them:
// jobs take turns. Tunnel returns when the application hangs up or
// ctx ends; a nil error is an orderly end. Claim mode own only.
type Tunneler interface {
	Tunnel(ctx context.Context, app io.ReadWriter) error
}

// Registry knows the drivers of a program. There are no side effects of
// imports: main registers each driver that it carries.
type Registry struct {
	drivers map[string]Driver
}

// NewRegistry returns a registry of the drivers. Two of one name are a
// programmer's error and panic.
func NewRegistry(drivers ...Driver) *Registry {
	r := &Registry{drivers: map[string]Driver{}}
	for _, d := range drivers {
		if r.drivers[d.Name()] != nil {
			panic("hal: two drivers named " + d.Name())
		}
		r.drivers[d.Name()] = d
	}
	return r
}

// Names lists the drivers, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.drivers)) }

// Open opens one device with the driver of that name. An unknown name is an
// E_NOSERVICE that says which there are.
func (r *Registry) Open(ctx context.Context, driver string, cfg Config) (Device, error) {
	d, err := r.find(driver, cfg)
	if err != nil {
		return nil, err
	}
	return d.Open(ctx, cfg)
}

// Check says what is wrong with a configuration, see Checker. Of a driver that
// cannot say nothing is known: no device, and no error.
func (r *Registry) Check(driver string, cfg Config) ([]Info, error) {
	d, err := r.find(driver, cfg)
	if err != nil {
		return nil, err
	}
	if c, ok := d.(Checker); ok {
		return c.Check(cfg)
	}
	return nil, nil
}

func (r *Registry) find(driver string, cfg Config) (Driver, error) {
	if d := r.drivers[driver]; d != nil {
		return d, nil
	}
	return nil, &Error{Code: "E_NOSERVICE", Op: "open " + cfg.ID, Err: fmt.Errorf("no driver %q; there are: %s", driver, strings.Join(r.Names(), ", "))}
}
