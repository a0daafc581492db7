package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type deviceCmd struct {
	List deviceList `cmd:"" help:"List devices."`
	Show deviceShow `cmd:"" help:"Show a device and its peripherals."`
	Set  deviceSet  `cmd:"" help:"Say where a device stands, and what it is called."`

	Attest       deviceAttest       `cmd:"" help:"Ask a device for fresh evidence now."`
	Attestations deviceAttestations `cmd:"" help:"List what the verifier said about a device, newest first."`
	Waive        deviceWaive        `cmd:"" help:"Let a quarantined device in for a while, on your word."`
	Revoke       deviceRevoke       `cmd:"" help:"Shut a device out, now."`
	Readmit      deviceReadmit      `cmd:"" help:"Let a revoked device come back."`
	Voucher      deviceVoucher      `cmd:"" help:"Tell whose a device is; get the voucher that says so."`
	Transfer     deviceTransfer     `cmd:"" help:"Offer a device to its next owner."`
	Object       deviceObject       `cmd:"" help:"Void an open offer, or the vendor's override."`
}

type deviceList struct {
	Site   string `help:"Only of this site."`
	Group  string `help:"Only of this group."`
	Former bool   `help:"What devices left behind that moved on, instead of devices."`
	Trust  string `help:"Only pending, attested, degraded, quarantined or stale ones." enum:",pending,attested,degraded,quarantined,stale" default:""`
	Query  string `short:"q" help:"Part of id, label, serial, site or model."`
}

type device struct {
	ID           string     `json:"id"`
	Serial       string     `json:"serial"`
	Label        string     `json:"label"`
	Site         string     `json:"site"`
	Group        string     `json:"group"`
	Tier         string     `json:"tier"`
	Trust        string     `json:"trust"`
	TrustReasons []string   `json:"trust_reasons"`
	Health       string     `json:"health"`
	Online       bool       `json:"online"`
	LastSeen     *time.Time `json:"last_seen"`
	AgentVersion string     `json:"agent_version"`
	Slot         string     `json:"slot"`
	Samples      uint64     `json:"samples"`
	AuditHead    uint64     `json:"audit_head"`
	AuditOK      bool       `json:"audit_ok"`
	BootRelease  string     `json:"boot_release"`
	Findings     []finding  `json:"findings"`
	RevokedAt    *time.Time `json:"revoked_at"`
	RevokedWhy   string     `json:"revoked_why"`
	Certificate  struct {
		Serial   string     `json:"serial"`
		NotAfter *time.Time `json:"not_after"`
	} `json:"certificate"`
	Audit *struct {
		Missing         uint64 `json:"missing"`
		Lost            uint64 `json:"lost"`
		AnchoredTo      uint64 `json:"anchored_to"`
		CountersignedTo uint64 `json:"countersigned_to"`
		ArchivedTo      uint64 `json:"archived_to"`
	} `json:"audit"`
	Waiver *struct {
		Until  *time.Time `json:"until"`
		By     string     `json:"by"`
		Reason string     `json:"reason"`
	} `json:"waiver"`
	Ownership *struct {
		State string `json:"state"`
		Owner string `json:"owner"`
	} `json:"ownership"`
	Peripherals []struct {
		ID        string `json:"id"`
		Category  string `json:"category"`
		Model     string `json:"model"`
		Simulated bool   `json:"simulated"`
		Power     string `json:"power"`
		Health    string `json:"health"`
		Reason    string `json:"reason"`
		Advice    string `json:"advice"`
	} `json:"peripherals"`
}

func (d device) seen() string {
	if d.Online {
		return "online"
	}
	return ago(d.LastSeen)
}

// Run implements the command.
func (c *deviceList) Run(ctx context.Context, o *out, api *client) error {
	q := url.Values{"limit": {"1000"}}
	for k, v := range map[string]string{"site": c.Site, "group": c.Group, "trust": c.Trust, "q": c.Query} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if c.Former {
		q.Set("former", "true")
	}
	items, err := api.all(ctx, "/v1/devices", q, 0)
	if err != nil {
		return err
	}
	return list(o, items, deviceHead, deviceRow)
}

const deviceHead = "DEVICE\tSERIAL\tSITE\tGROUP\tTRUST\tHEALTH\tAGENT\tSEEN"

func deviceRow(d device) string {
	return tab(d.ID, d.Serial, d.Site, d.Group, d.Trust, d.Health, d.AgentVersion, d.seen())
}

type deviceShow struct {
	Device string `arg:"" help:"Device id."`
}

// Run implements the command.
func (c *deviceShow) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	if err := api.get(ctx, "/v1/devices/"+url.PathEscape(c.Device), &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	var d device
	if err := json.Unmarshal(raw, &d); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	tw := tabwriter.NewWriter(o.w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "device\t%s\nlabel\t%s\nserial\t%s\nsite, group\t%s, %s\ntrust\t%s, tier %s %s\nseen\t%s\nagent\t%s, slot %s\nsamples\t%d\naudit\t%d entries, chain ok: %v\n",
		d.ID, d.Label, d.Serial, d.Site, d.Group, d.Trust, d.Tier, strings.Join(d.TrustReasons, "; "), d.seen(), d.AgentVersion, d.Slot, d.Samples, d.AuditHead, d.AuditOK)
	if a := d.Audit; a != nil {
		fmt.Fprintf(tw, "\tsigned by the TPM up to %d, countersigned up to %d", a.AnchoredTo, a.CountersignedTo)
		for _, n := range []struct {
			n    uint64
			text string
		}{{a.Missing, ", %d missing"}, {a.Lost, ", %d lost with a damaged file"}, {a.ArchivedTo, ", put away up to %d"}} {
			if n.n > 0 {
				fmt.Fprintf(tw, n.text, n.n)
			}
		}
		fmt.Fprintln(tw)
	}
	d.trusted(tw)
	for _, p := range d.Peripherals {
		sim := ""
		if p.Simulated {
			sim = " (simulated)"
		}
		fmt.Fprintf(tw, "%s\t%s %s%s: %s %s %s %s\n", p.ID, p.Category, p.Model, sim, p.Power, p.Health, p.Reason, p.Advice)
	}
	return tw.Flush()
}

type commandCmd struct {
	Send commandSend `cmd:"" help:"Send a command to a device or a group."`
	List commandList `cmd:"" help:"List commands, newest first."`
}

type commandSend struct {
	Device  string        `arg:"" help:"Device id, or group:NAME for every device of a group."`
	Verb    string        `arg:"" help:"identify, reboot, collect-logs, print-test, check-health, set-config, diagnose or factory-reset."`
	Args    []string      `arg:"" optional:"" help:"NAME=VALUE, e.g. peripheral=receipt, level=external or label=\"Lane 3\"; for factory-reset device=DEVICE, to confirm it."`
	Reason  string        `help:"Why; kept in the audit trail."`
	Expires time.Duration `help:"How long it may wait for the device." default:"1h"`
	Wait    time.Duration `help:"Wait this long for the result."`
}

type command struct {
	ID       string     `json:"id"`
	Device   string     `json:"device"`
	Verb     string     `json:"verb"`
	By       string     `json:"by"`
	State    string     `json:"state"`
	Code     string     `json:"code"`
	Text     string     `json:"text"`
	Output   string     `json:"output"`
	IssuedAt *time.Time `json:"issued_at"`
}

func commandRow(c command) string {
	return tab(c.ID, c.Device, c.Verb, c.State, strings.TrimSpace(c.Code+" "+c.Text), c.By, ago(c.IssuedAt))
}

const commandHead = "COMMAND\tDEVICE\tVERB\tSTATE\tDETAIL\tBY\tISSUED"

// Run implements the command.
func (c *commandSend) Run(ctx context.Context, o *out, api *client) error {
	args := map[string]string{}
	for _, a := range c.Args {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			return usage{fmt.Errorf("argument %q: write NAME=VALUE", a)}
		}
		args[k] = v
	}
	life, err := seconds("--expires", c.Expires)
	if err != nil {
		return err
	}
	in := map[string]any{"verb": c.Verb, "args": args, "reason": c.Reason, "expires_in_s": life}
	if g, ok := strings.CutPrefix(c.Device, "group:"); ok {
		in["group"] = g
	} else {
		in["device"] = c.Device
	}
	var p page
	if err := api.post(ctx, "/v1/commands", in, &p); err != nil {
		return err
	}
	if c.Wait > 0 {
		if err := c.wait(ctx, api, &p); err != nil {
			return err
		}
	}
	return list(o, p.Items, commandHead, commandRow)
}

// wait replaces each command by how it ended.
func (c *commandSend) wait(ctx context.Context, api *client, p *page) error {
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	for i := range p.Items {
		for {
			var cmd command
			if err := json.Unmarshal(p.Items[i], &cmd); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			if cmd.State != "QUEUED" && cmd.State != "SENT" {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("no result within %s; see tillward command list", c.Wait)
			case <-time.After(300 * time.Millisecond):
			}
			if err := api.get(ctx, "/v1/commands/"+url.PathEscape(cmd.ID), &p.Items[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

type commandList struct {
	Device string `help:"Only of this device."`
	State  string `help:"Only in this state." enum:",QUEUED,SENT,SUCCEEDED,FAILED,REJECTED,EXPIRED" default:""`
	Limit  int    `help:"At most so many." default:"100"`
}

// Run implements the command.
func (c *commandList) Run(ctx context.Context, o *out, api *client) error {
	q := url.Values{}
	if c.Device != "" {
		q.Set("device", c.Device)
	}
	if c.State != "" {
		q.Set("state", c.State)
	}
	items, err := api.all(ctx, "/v1/commands", q, c.Limit)
	if err != nil {
		return err
	}
	return list(o, items, commandHead, commandRow)
}

type auditCmd struct {
	Search auditSearch `cmd:"" help:"Search all trails: who did what, where, when, and what came of it."`
	List   auditList   `cmd:"" help:"List a trail, newest first."`
	Verify auditVerify `cmd:"" help:"Prove a trail: a sealed file without the service, or what the service has."`

	Export   auditExport   `cmd:"" help:"Take a trail away as a sealed file."`
	Keys     auditKeys     `cmd:"" help:"Print the key that the service seals and countersigns trails with."`
	Segments auditSegments `cmd:"" help:"List the sealed files that older entries were put away in."`
}

// trail is the path of a device's trail, or of the service's own.
func trail(device string) string {
	if device == "" {
		return "/v1/audit"
	}
	return "/v1/devices/" + url.PathEscape(device) + "/audit"
}

type auditList struct {
	Device   string `arg:"" optional:"" help:"Device id; without it the service's own trail."`
	Severity string `help:"Only info, warn or alarm entries." enum:",info,warn,alarm" default:""`
	Limit    int    `help:"At most so many." default:"100"`
}

type auditEvent struct {
	Seq      uint64            `json:"seq"`
	At       *time.Time        `json:"at"`
	Kind     string            `json:"kind"`
	Severity string            `json:"severity"`
	Actor    string            `json:"actor"`
	Subject  string            `json:"subject"`
	Detail   map[string]string `json:"detail"`
}

// Run implements the command.
func (c *auditList) Run(ctx context.Context, o *out, api *client) error {
	q := url.Values{}
	if c.Severity != "" {
		q.Set("severity", c.Severity)
	}
	items, err := api.all(ctx, trail(c.Device), q, c.Limit)
	if err != nil {
		return err
	}
	return list(o, items, "SEQ\tTIME\tSEVERITY\tKIND\tSUBJECT\tACTOR\tDETAIL", func(e auditEvent) string {
		var detail []string
		for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
			detail = append(detail, k+"="+e.Detail[k])
		}
		at := ""
		if e.At != nil {
			at = e.At.Local().Format(time.DateTime)
		}
		return tab(fmt.Sprint(e.Seq), at, e.Severity, e.Kind, e.Subject, e.Actor, strings.Join(detail, " "))
	})
}

type tokenCmd struct {
	Create tokenCreate `cmd:"" help:"Make a token; it is shown once."`
	List   tokenList   `cmd:"" help:"List tokens."`
	Revoke tokenRevoke `cmd:"" help:"Revoke a token."`
}

type tokenCreate struct {
	Name    string        `arg:"" help:"Whose it is, e.g. alice or nightly-report."`
	Role    string        `required:"" enum:"viewer,operator,admin" help:"viewer, operator or admin."`
	Expires time.Duration `help:"How long it is good for; for ever by default."`
}

// Run implements the command.
func (c *tokenCreate) Run(ctx context.Context, o *out, api *client) error {
	var t struct {
		ID    string `json:"id"`
		Name  string `json:"name"`
		Role  string `json:"role"`
		Token string `json:"token"`
	}
	life := 0
	if c.Expires != 0 {
		var err error
		if life, err = seconds("--expires", c.Expires); err != nil {
			return err
		}
	}
	in := map[string]any{"name": c.Name, "role": c.Role, "expires_in_s": life}
	if err := api.post(ctx, "/v1/tokens", in, &t); err != nil {
		return err
	}
	return o.print(t, t.Token+"\n(shown once; put it into a file of your own and name that with --token-file)")
}

type tokenList struct{}

// Run implements the command.
func (tokenList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/tokens", url.Values{}, 0)
	if err != nil {
		return err
	}
	type token struct {
		ID        string     `json:"id"`
		Name      string     `json:"name"`
		Role      string     `json:"role"`
		CreatedAt *time.Time `json:"created_at"`
		RevokedAt *time.Time `json:"revoked_at"`
	}
	return list(o, items, "TOKEN\tNAME\tROLE\tMADE\tREVOKED", func(t token) string {
		revoked := ""
		if t.RevokedAt != nil {
			revoked = ago(t.RevokedAt)
		}
		return tab(t.ID, t.Name, t.Role, ago(t.CreatedAt), revoked)
	})
}

type tokenRevoke struct {
	Token string `arg:"" help:"Token id, tok_..."`
}

// Run implements the command.
func (c *tokenRevoke) Run(ctx context.Context, o *out, api *client) error {
	if err := api.do(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(c.Token), "", nil, nil); err != nil {
		return err
	}
	return o.print(map[string]string{"revoked": c.Token}, "revoked "+c.Token)
}
