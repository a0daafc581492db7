package simulator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// Report is what a run proves, as JSON.
type Report struct {
	Tills      []TillReport `json:"tills"`
	Duplicates int          `json:"duplicates"` // samples the service holds beyond those the tills recorded
	OK         bool         `json:"ok"`
	Problems   []string     `json:"problems,omitempty"`
	Seed       uint64       `json:"seed"`
	Seconds    float64      `json:"seconds"` // from the first boot to the report
}

// TillReport is one till's part of a Report.
type TillReport struct {
	DeviceID     string             `json:"device_id"`
	Till         string             `json:"till"`
	Tier         string             `json:"tier"`
	Attested     bool               `json:"attested"`
	Samples      uint64             `json:"samples"`          // stored by the service
	Recorded     uint64             `json:"samples_recorded"` // by the till, in all its life
	Audit        AuditReport        `json:"audit"`
	Peripherals  []PeripheralReport `json:"peripherals"`
	AgentVersion VersionReport      `json:"agent_version"`
	Commands     CommandReport      `json:"commands"`
}

// AuditReport compares what a till recorded with what the service stored.
type AuditReport struct {
	Recorded uint64 `json:"recorded"`
	Stored   uint64 `json:"stored"`
	ChainOK  bool   `json:"chain_ok"`
}

// PeripheralReport is the last state of one peripheral.
type PeripheralReport struct {
	ID        string `json:"id"`
	Category  string `json:"category"`
	Driver    string `json:"driver"`
	Health    string `json:"health"`
	Simulated bool   `json:"simulated"`
}

// VersionReport holds the agent's version at the first boot and at the end.
type VersionReport struct {
	Before string `json:"before"`
	After  string `json:"after"`
}

// CommandReport counts the commands of one till.
type CommandReport struct {
	Sent      int `json:"sent"`
	Succeeded int `json:"succeeded"`
}

// device is what the report needs of the API's device.
type device struct {
	ID           string             `json:"id"`
	Tier         string             `json:"tier"`
	Serial       string             `json:"serial"`
	Trust        string             `json:"trust"`
	TrustReasons []string           `json:"trust_reasons"`
	Online       bool               `json:"online"`
	AgentVersion string             `json:"agent_version"`
	Slot         string             `json:"slot"`
	Health       string             `json:"health"`
	Samples      uint64             `json:"samples"`
	AuditHead    uint64             `json:"audit_head"`
	Peripherals  []PeripheralReport `json:"peripherals"`
}

// devices returns the fleet, keyed by serial number (the till's name).
func (w *World) devices(ctx context.Context) (map[string]device, error) {
	items, err := all[device](ctx, w.Operator, "/v1/devices?")
	if err != nil {
		return nil, err
	}
	out := make(map[string]device, len(items))
	for _, d := range items {
		out[d.Serial] = d
	}
	return out, nil
}

// report collects the proof. The agents must have stopped, so that what they
// recorded does not grow while it is compared.
func (w *World) report(ctx context.Context, began time.Time) (Report, error) {
	r := Report{Seed: w.opt.Seed, Seconds: time.Since(began).Round(time.Millisecond).Seconds()}
	fleet, err := w.devices(ctx)
	if err != nil {
		return r, err
	}
	for _, t := range w.Tills {
		d, ok := fleet[t.Name]
		if !ok {
			r.Problems = append(r.Problems, t.Name+": never enrolled")
			continue
		}
		tr, err := w.reportTill(ctx, t, d)
		if err != nil {
			return r, err
		}
		r.Tills = append(r.Tills, tr)
		r.Problems = append(r.Problems, tr.problems(w.opt.UpdateTo)...)
	}
	for _, t := range r.Tills {
		r.Duplicates += int(max(0, int64(t.Samples)-int64(t.Recorded))) // #nosec G115 -- far below 2^63
	}
	r.OK = len(r.Problems) == 0
	return r, nil
}

func (w *World) reportTill(ctx context.Context, t *Till, d device) (TillReport, error) {
	tr := TillReport{
		DeviceID: d.ID, Till: t.Name, Tier: d.Tier, Attested: d.Trust == "attested",
		Peripherals:  d.Peripherals,
		AgentVersion: VersionReport{Before: t.firstVersion, After: d.AgentVersion},
	}
	local, err := t.status(ctx)
	if err != nil {
		return tr, err
	}
	var chain struct {
		OK      bool   `json:"ok"`
		Entries uint64 `json:"entries"`
	}
	if err := w.Operator.Get(ctx, "/v1/devices/"+d.ID+"/audit/verify", &chain); err != nil {
		return tr, err
	}
	var series list[struct {
		Count uint64 `json:"count"`
	}]
	if err := w.Operator.Get(ctx, "/v1/devices/"+d.ID+"/series", &series); err != nil {
		return tr, err
	}
	tr.Samples, tr.Recorded = 0, local.SamplesRecorded
	for _, s := range series.Items {
		tr.Samples += s.Count
	}
	tr.Audit = AuditReport{Recorded: local.AuditRecorded, Stored: chain.Entries, ChainOK: chain.OK}
	commands, err := all[struct {
		State string `json:"state"`
	}](ctx, w.Operator, "/v1/commands?device="+d.ID)
	if err != nil {
		return tr, err
	}
	tr.Commands.Sent = len(commands)
	for _, c := range commands {
		if c.State == "SUCCEEDED" {
			tr.Commands.Succeeded++
		}
	}
	return tr, nil
}

// problems lists what a good run must not show.
func (t TillReport) problems(updateTo string) []string {
	var out []string
	add := func(bad bool, format string, args ...any) {
		if bad {
			out = append(out, t.Till+": "+fmt.Sprintf(format, args...))
		}
	}
	add(!t.Attested, "not attested")
	add(t.Samples == 0, "no samples stored")
	add(t.Samples != t.Recorded, "%d samples recorded, %d stored", t.Recorded, t.Samples)
	add(!t.Audit.ChainOK, "audit chain does not verify")
	add(t.Audit.Recorded != t.Audit.Stored, "%d audit events recorded, %d stored", t.Audit.Recorded, t.Audit.Stored)
	add(len(t.Peripherals) == 0, "no peripherals reported")
	add(t.Commands.Sent == 0 || t.Commands.Succeeded < t.Commands.Sent, "%d of %d commands succeeded", t.Commands.Succeeded, t.Commands.Sent)
	add(updateTo != "" && t.AgentVersion.After != updateTo, "agent is %s, not %s", t.AgentVersion.After, updateTo)
	return out
}

// WriteReport stores the report of a scenario at path as JSON, or prints it to
// out when path is "-"; empty: nowhere.
func WriteReport(out io.Writer, path string, r any) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	b = append(b, '\n')
	if path == "-" {
		_, err = out.Write(b)
		return err
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
