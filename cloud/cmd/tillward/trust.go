package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

type finding struct {
	Check   string `json:"check"`
	PCR     string `json:"pcr"`
	Event   string `json:"event"`
	Release string `json:"release"`
	Text    string `json:"text"`
}

func (f finding) String() string {
	var where []string
	for _, p := range [...]struct{ name, v string }{{"PCR", f.PCR}, {"event", f.Event}, {"against", f.Release}} {
		if p.v != "" {
			where = append(where, p.name+" "+p.v)
		}
	}
	if len(where) == 0 {
		return f.Check + ": " + f.Text
	}
	return f.Check + " (" + strings.Join(where, ", ") + "): " + f.Text
}

func devicePath(id, rest string) string { return "/v1/devices/" + url.PathEscape(id) + rest }

// because is the reason that a deed must have.
type because struct {
	Reason string `required:"" help:"Why; kept in the audit trail."`
}

// answered prints a device after something was done to it.
func answered(o *out, raw json.RawMessage, what string) error {
	var d device
	if err := json.Unmarshal(raw, &d); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return o.print(raw, d.ID+" "+what)
}

type deviceAttest struct {
	Device string `arg:"" help:"Device id."`
}

// Run implements the command.
func (c *deviceAttest) Run(ctx context.Context, o *out, api *client) error {
	if err := api.do(ctx, http.MethodPost, devicePath(c.Device, "/attest"), "", nil, nil); err != nil {
		return err
	}
	return o.print(map[string]string{"asked": c.Device}, "asked "+c.Device+" for evidence; see tillward device attestations")
}

type deviceWaive struct {
	Device string        `arg:"" help:"Device id."`
	For    time.Duration `help:"How long, 720h at most." default:"24h"`
	Reason string        `help:"Why; kept in the audit trail."`
	End    bool          `help:"Take the waiver back."`
}

// Run implements the command.
func (c *deviceWaive) Run(ctx context.Context, o *out, api *client) error {
	var d json.RawMessage
	if c.End {
		if err := api.do(ctx, http.MethodDelete, devicePath(c.Device, "/waiver"), "", nil, &d); err != nil {
			return err
		}
		return answered(o, d, "is judged by its boot again")
	}
	switch {
	case c.Reason == "":
		return usage{errors.New("say why, with --reason")}
	case c.For < time.Minute:
		return usage{fmt.Errorf("--for %s: give at least 1m", c.For)}
	}
	until := time.Now().Add(c.For).Truncate(time.Second)
	if err := api.send(ctx, http.MethodPut, devicePath(c.Device, "/waiver"), map[string]any{"until": until, "reason": c.Reason}, &d); err != nil {
		return err
	}
	return answered(o, d, "is let in until "+until.Format(time.DateTime))
}

type deviceRevoke struct {
	because

	Device string `arg:"" help:"Device id."`
}

// Run implements the command.
func (c *deviceRevoke) Run(ctx context.Context, o *out, api *client) error {
	var d json.RawMessage
	if err := api.post(ctx, devicePath(c.Device, "/revoke"), map[string]string{"reason": c.Reason}, &d); err != nil {
		return err
	}
	return answered(o, d, "is shut out")
}

type deviceReadmit struct {
	because

	Device string `arg:"" help:"Device id."`
}

// Run implements the command.
func (c *deviceReadmit) Run(ctx context.Context, o *out, api *client) error {
	var d json.RawMessage
	if err := api.post(ctx, devicePath(c.Device, "/readmit"), map[string]string{"reason": c.Reason}, &d); err != nil {
		return err
	}
	return answered(o, d, "may come back")
}

type deviceAttestations struct {
	Device string `arg:"" help:"Device id."`
	Limit  int    `help:"At most so many." default:"100"`
}

// Run implements the command.
func (c *deviceAttestations) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, devicePath(c.Device, "/attestations"), url.Values{}, c.Limit)
	if err != nil {
		return err
	}
	type attestation struct {
		At       *time.Time `json:"at"`
		Trust    string     `json:"trust"`
		Release  string     `json:"release"`
		Resets   uint32     `json:"reset_count"`
		Findings []finding  `json:"findings"`
	}
	return list(o, items, "TIME\tTRUST\tRELEASE\tRESETS\tFINDINGS", func(a attestation) string {
		var text []string
		for _, f := range a.Findings {
			text = append(text, f.String())
		}
		return tab(stamp(a.At), a.Trust, a.Release, fmt.Sprint(a.Resets), strings.Join(text, "; "))
	})
}

// stamp is a time as a table shows it.
func stamp(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

type firmwareCmd struct {
	List    firmwareList   `cmd:"" help:"List firmware events that no reference values know, newest first."`
	Approve firmwareDecide `cmd:"" help:"Approve an event for all devices of a model."`
	Reject  firmwareDecide `cmd:"" help:"Reject an event: devices that show it are quarantined."`
	Reopen  firmwareDecide `cmd:"" help:"Take a decision back."`
}

type firmwareList struct {
	Model string `help:"Only of this model."`
	State string `help:"Only open, approved or rejected ones." enum:",open,approved,rejected" default:""`
	Limit int    `help:"At most so many." default:"100"`
}

// Run implements the command.
func (c *firmwareList) Run(ctx context.Context, o *out, api *client) error {
	q := url.Values{}
	for k, v := range map[string]string{"model": c.Model, "state": c.State} {
		if v != "" {
			q.Set(k, v)
		}
	}
	items, err := api.all(ctx, "/v1/firmware", q, c.Limit)
	if err != nil {
		return err
	}
	type event struct {
		Model   string     `json:"model"`
		PCR     int        `json:"pcr"`
		Digest  string     `json:"digest"`
		What    string     `json:"what"`
		Devices int        `json:"devices"`
		FirstAt *time.Time `json:"first_at"`
		State   string     `json:"state"`
		By      string     `json:"by"`
	}
	return list(o, items, "MODEL\tPCR\tDIGEST\tSTATE\tBY\tDEVICES\tFIRST\tWHAT", func(e event) string {
		return tab(e.Model, fmt.Sprint(e.PCR), e.Digest, e.State, e.By, fmt.Sprint(e.Devices), ago(e.FirstAt), e.What)
	})
}

type firmwareDecide struct {
	because

	Model  string `arg:"" help:"Model of the devices."`
	PCR    int    `arg:"" name:"pcr" help:"Register of the event."`
	Digest string `arg:"" help:"Digest of the event, as firmware list shows it."`
}

// Run implements the command.
func (c *firmwareDecide) Run(ctx context.Context, o *out, api *client, verb string) error {
	decision := map[string]string{"approve": "approved", "reject": "rejected", "reopen": "open"}[verb]
	in := map[string]any{"model": c.Model, "pcr": c.PCR, "digest": c.Digest, "decision": decision, "reason": c.Reason}
	if err := api.post(ctx, "/v1/firmware/decision", in, nil); err != nil {
		return err
	}
	return o.print(in, fmt.Sprintf("%s for all devices of model %s", decision, c.Model))
}

type referenceCmd struct {
	List referenceList `cmd:"" help:"List the reference values of a model's releases."`
}

type referenceList struct {
	Model string `arg:"" help:"Model of the devices."`
}

// Run implements the command.
func (c *referenceList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/references", url.Values{"model": {c.Model}}, 0)
	if err != nil {
		return err
	}
	type reference struct {
		Model       string     `json:"model"`
		Release     string     `json:"release"`
		PublishedAt *time.Time `json:"published_at"`
	}
	return list(o, items, "MODEL\tRELEASE\tPUBLISHED", func(r reference) string { return tab(r.Model, r.Release, ago(r.PublishedAt)) })
}

type caCmd struct {
	Status caStatus `cmd:"" help:"List the certificates that sign, or signed, device certificates."`
	Rotate caRotate `cmd:"" help:"Sign with a new issuing certificate from now on; no device is cut off."`
	Retire caRetire `cmd:"" help:"Believe an older issuing certificate no more; devices that have not renewed enrol anew."`
}

type caStatus struct{}

// issuing prints issuing certificates.
func issuing(o *out, items []json.RawMessage) error {
	type authority struct {
		Serial   string     `json:"serial"`
		NotAfter *time.Time `json:"not_after"`
		Current  bool       `json:"current"`
	}
	return list(o, items, "CERTIFICATE\tENDS\tUSE", func(a authority) string {
		use := "believed"
		if a.Current {
			use = "signs"
		}
		return tab(a.Serial, stamp(a.NotAfter), use)
	})
}

// Run implements the command.
func (caStatus) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/authority", url.Values{}, 0)
	if err != nil {
		return err
	}
	return issuing(o, items)
}

type caRotate struct {
	because
}

// Run implements the command.
func (c *caRotate) Run(ctx context.Context, o *out, api *client) error {
	var p page
	if err := api.post(ctx, "/v1/authority/rotate", map[string]string{"reason": c.Reason}, &p); err != nil {
		return err
	}
	return issuing(o, p.Items)
}

type caRetire struct {
	Serial string `arg:"" help:"As ca status lists it."`
	because
}

// Run implements the command.
func (c *caRetire) Run(ctx context.Context, o *out, api *client) error {
	var p page
	if err := api.post(ctx, "/v1/authority/retire", map[string]string{"serial": c.Serial, "reason": c.Reason}, &p); err != nil {
		return err
	}
	return issuing(o, p.Items)
}

// trusted prints what a device's identity and boot rest on.
func (d device) trusted(w io.Writer) {
	fmt.Fprintf(w, "certificate\t%s until %s\n", d.Certificate.Serial, stamp(d.Certificate.NotAfter))
	if d.BootRelease != "" {
		fmt.Fprintf(w, "boot\t%s\n", d.BootRelease)
	}
	for _, f := range d.Findings {
		fmt.Fprintf(w, "finding\t%s\n", f)
	}
	if d.Waiver != nil {
		fmt.Fprintf(w, "waiver\tuntil %s by %s: %s\n", stamp(d.Waiver.Until), d.Waiver.By, d.Waiver.Reason)
	}
	if d.RevokedAt != nil {
		fmt.Fprintf(w, "revoked\t%s: %s\n", stamp(d.RevokedAt), d.RevokedWhy)
	}
	if d.Ownership != nil {
		fmt.Fprintf(w, "owner\t%s (%s)\n", d.Ownership.Owner, d.Ownership.State)
	}
}
