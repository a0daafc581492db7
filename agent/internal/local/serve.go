package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

// tunnel joins a program to the printer.
func (s *Server) tunnel(ctx context.Context, c net.Conn) {
	p := s.printer(ctx)
	if p == nil {
		s.refuse("the printer is not open")
		return
	}
	give, err := s.wait(ctx, p)
	if err != nil {
		if errors.Is(err, errBusy) {
			s.refuse(err.Error())
		}
		return
	}
	defer give()
	a := newApp(c)
	defer s.enter(a)()
	within, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() {
		a.finish()
		select { // a driver that does not notice
		case <-time.After(time.Second):
			end()
		case <-within.Done():
		}
	})
	defer stop()
	s.wg.Go(func() { s.yield(within, a) })
	err = contained(func() error {
		switch p := p.(type) {
		case hal.Tunneler:
			return p.Tunnel(within, a)
		case hal.Passthrough:
			_, err := p.Print(within, a)
			return err
		}
		return errors.New("the printer takes no jobs: claim it with own")
	})
	s.jobs.Add(a.jobs())
	switch {
	case errors.Is(a.fault(), errPage):
		s.refuse(errPage.Error())
	case a.fault() != nil || err != nil && !errors.Is(err, errQuiet) && ctx.Err() == nil:
		s.failed.Add(1)
		s.o.Log.Warn("print socket: the connection ended early", slog.String("printer", s.o.ID), slog.String("code", codeOf(err)))
	}
}

// contained turns a driver's panic into an error that does not hold its words.
func contained(do func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = &hal.Error{Code: "M_DRIVER_PANIC", Op: "print"}
		}
	}()
	return do()
}

// codeOf is what may be logged of a driver's error.
func codeOf(err error) string {
	if e := (*hal.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "E_TIMEOUT"
	}
	return "E_FAILURE"
}

// printed and refusal are the two answers to a job that was handed in for proof.
type printed struct {
	Printed   bool  `json:"printed"`
	Confirmed bool  `json:"confirmed"` // the printer itself has said that all of it came out
	Bytes     int64 `json:"bytes"`
	Cuts      int   `json:"cuts"`
}

type refusal struct {
	Printed bool   `json:"printed"`
	Code    string `json:"code"`  // why not: REC_EMPTY, COVER_OPEN, E_BUSY, ...
	Error   string `json:"error"` // the same for a person
}

// proof takes a job, prints it and says how that went.
func (s *Server) proof(ctx context.Context, c net.Conn) {
	var answer any
	made, err := s.job(ctx, c)
	if err == nil {
		answer = printed{true, made.Confirmed, made.Bytes, made.Cuts}
	} else {
		answer = refusal{false, s.why(ctx, err), err.Error()}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(answerIn))
	_, _ = c.Write(append(b, '\n'))
}

// job hands a job to the printer, all of it or nothing: what a program did not
// finish handing in is not printed.
func (s *Server) job(ctx context.Context, c net.Conn) (hal.Job, error) {
	illegal := func(format string, args ...any) error {
		s.refused.Add(1)
		return &hal.Error{Code: "E_ILLEGAL", Op: "print", Err: fmt.Errorf(format, args...)}
	}
	var job bytes.Buffer
	in := &patient{Conn: c, end: time.Now().Add(handAll)}
	stop := after(ctx, in.stop)
	_, err := io.Copy(&job, io.LimitReader(in, maxJob+1))
	stop()
	switch {
	case ctx.Err() != nil:
		return hal.Job{}, &hal.Error{Code: "E_BUSY", Op: "print", Err: errors.New("the agent ends; hand the job in again")}
	case err != nil:
		return hal.Job{}, illegal("the job was not handed in to its end: close the writing side behind it")
	case job.Len() == 0:
		return hal.Job{}, illegal("the job is empty")
	case job.Len() > maxJob:
		return hal.Job{}, illegal("the job has more than %d bytes", maxJob)
	}
	d := s.printer(ctx)
	p, ok := d.(hal.Passthrough)
	if !ok {
		s.refuse("the printer is not open")
		return hal.Job{}, &hal.Error{Code: "E_OFFLINE", Op: "print", Err: errors.New("the printer is not open")}
	}
	give, err := s.wait(ctx, d)
	if err != nil {
		s.refuse(err.Error())
		return hal.Job{}, &hal.Error{Code: "E_BUSY", Op: "print", Err: err}
	}
	defer give()
	within, end := context.WithTimeout(context.WithoutCancel(ctx), printIn)
	defer end()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(finish):
			end()
		case <-within.Done():
		}
	})()
	s.jobs.Add(1)
	var made hal.Job
	err = contained(func() (err error) { made, err = p.Print(within, &job); return err })
	if err != nil {
		s.failed.Add(1)
	}
	return made, err
}

// why is the code of a job that failed: what the printer is stopped by says more
// than that it is.
func (s *Server) why(ctx context.Context, err error) string {
	code := codeOf(err)
	if code != "E_OFFLINE" && code != "E_FAILURE" {
		return code
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	r, ok := s.o.Printer(ctx).(hal.StatusReader)
	if !ok {
		return code
	}
	_ = contained(func() error {
		st, err := r.Status(ctx)
		if err == nil && st.Reason != "" && (st.Health == hal.Fault || st.Health == hal.Offline) {
			code = st.Reason
		}
		return err
	})
	return code
}

// patient reads with a deadline that each byte puts off, until it is stopped or
// has had its time.
type patient struct {
	net.Conn
	end time.Time

	mu    sync.Mutex
	ended bool
}

// Read implements io.Reader.
func (p *patient) Read(b []byte) (int, error) {
	p.mu.Lock()
	if !p.ended {
		until := time.Now().Add(handIn)
		if until.After(p.end) {
			until = p.end
		}
		_ = p.SetReadDeadline(until)
	}
	p.mu.Unlock()
	return p.Conn.Read(b)
}

func (p *patient) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	_ = p.SetReadDeadline(time.Now())
}
