package main

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

type exportCmd struct {
	List exportList `cmd:"" help:"List sinks, how far each is and what is wrong."`
	Test exportTest `cmd:"" help:"Send a sink a test event, and wait until it has arrived."`
}

type exportState struct {
	Name      string     `json:"name"`
	Kind      string     `json:"kind"`
	Format    string     `json:"format"`
	To        string     `json:"to"`
	State     string     `json:"state"`
	Lag       int64      `json:"lag"`
	Sent      uint64     `json:"sent"`
	Lost      uint64     `json:"lost"`
	MovedAt   *time.Time `json:"moved_at"`
	LastError string     `json:"last_error"`
	FailedAt  *time.Time `json:"failed_at"`

	FailingSince *time.Time `json:"failing_since"`
	Stalled      bool       `json:"stalled"`
	Skipped      uint64     `json:"skipped"`
}

func exportRow(s exportState) string {
	said, state := s.LastError, s.State
	if s.Stalled {
		state = "stands still since " + ago(s.FailingSince)
	}
	if said != "" {
		said = ago(s.FailedAt) + ": " + said
	}
	return tab(s.Name, s.Kind, s.Format, s.To, state, strconv.FormatInt(s.Lag, 10), strconv.FormatUint(s.Sent, 10), strconv.FormatUint(s.Skipped, 10), strconv.FormatUint(s.Lost, 10), ago(s.MovedAt), said)
}

const exportHead = "SINK\tKIND\tFORMAT\tTO\tSTATE\tLAG\tSENT\tKEPT BACK\tLOST\tMOVED\tLAST ERROR"

type exportList struct{}

// Run implements the command.
func (exportList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/exports", url.Values{}, 0)
	if err != nil {
		return err
	}
	return list(o, items, exportHead, exportRow)
}

type exportTest struct {
	Sink string `arg:"" help:"As export list shows it."`
}

// Run implements the command.
func (c *exportTest) Run(ctx context.Context, o *out, api *client) error {
	if err := api.post(ctx, "/v1/exports/"+url.PathEscape(c.Sink)+"/test", nil, nil); err != nil {
		return err
	}
	return o.print(map[string]string{"sink": c.Sink, "outcome": "confirmed"}, fmt.Sprintf("%s has the test event", c.Sink))
}
