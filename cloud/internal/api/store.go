package api

import (
	"context"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Store is what the API reads and writes; cloud/internal/store fits. It is
// wide because the API shows everything there is, one part for each resource.
type Store interface {
	deviceStore
	peripheralStore
	commandStore
	releaseStore
	rolloutStore
	accessStore
	trustStore
	archiveStore
	Audit(ctx context.Context, ev fleet.AuditEvent) error
}

type deviceStore interface {
	Summary(ctx context.Context, t fleet.TenantID) (fleet.Summary, error)
	Device(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (fleet.Device, error)
	Devices(ctx context.Context, t fleet.TenantID, f fleet.DeviceFilter, p fleet.Page) ([]fleet.Device, string, error)
	SetDevice(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.DevicePatch, ev fleet.AuditEvent) error
	Series(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) ([]fleet.SeriesInfo, error)
	Points(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, peripheral, name string, from, to time.Time, limit int) ([]fleet.Point, error)
	Events(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) ([]fleet.PeripheralEvent, string, error)
	AuditTrailOf(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, severity string, newestFirst bool, p fleet.Page) ([]fleet.AuditEvent, string, error)
	VerifyAudit(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (fleet.ChainReport, error)
	SearchTrails(ctx context.Context, t fleet.TenantID, q fleet.TrailQuery, p fleet.Page) (fleet.TrailFound, error)
}

type peripheralStore interface {
	PeripheralsOf(ctx context.Context, t fleet.TenantID, ids ...fleet.DeviceID) (map[fleet.DeviceID][]fleet.Peripheral, error)
	Peripherals(ctx context.Context, t fleet.TenantID, f fleet.PeripheralFilter, p fleet.Page) ([]fleet.Peripheral, string, error)
	History(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, id string, since time.Time) (fleet.PeripheralHistory, error)
	PeripheralSeries(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, id string) ([]fleet.SeriesInfo, error)
}

type commandStore interface {
	Command(ctx context.Context, t fleet.TenantID, id fleet.CommandID) (fleet.Command, error)
	Commands(ctx context.Context, t fleet.TenantID, f fleet.CommandFilter, p fleet.Page) ([]fleet.Command, string, error)
}

type rolloutStore interface {
	Release(ctx context.Context, id fleet.ReleaseID) (fleet.Release, error)
	ReleaseOf(ctx context.Context, t fleet.TenantID, id fleet.ReleaseID) (fleet.Release, error)
	AddRollout(ctx context.Context, r fleet.Rollout, ev fleet.AuditEvent) error
	Rollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID) (fleet.Rollout, error)
	Rollouts(ctx context.Context, t fleet.TenantID, p fleet.Page) ([]fleet.Rollout, string, error)
	SaveRollout(ctx context.Context, r fleet.Rollout, events ...fleet.AuditEvent) (fleet.Rollout, error)
	RetryRollout(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, device fleet.DeviceID, ev fleet.AuditEvent) (int, error)
	RolloutUnits(ctx context.Context, t fleet.TenantID, id fleet.RolloutID, f fleet.ExecutionFilter, p fleet.Page) ([]fleet.Unit, string, error)
	DeviceUnits(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) ([]fleet.Unit, string, error)
	Counts(ctx context.Context, id fleet.RolloutID) (map[fleet.ExecutionState]int, error)
	Neutral(ctx context.Context, id fleet.RolloutID) (int, error)
	Progress(ctx context.Context, id fleet.RolloutID, silent time.Time) (fleet.Progress, error)
	RolloutHealth(ctx context.Context, id fleet.RolloutID) (map[string]fleet.Health, error)
	Sites(ctx context.Context, t fleet.TenantID) ([]fleet.Site, error)
	PutSite(ctx context.Context, s fleet.Site, ev fleet.AuditEvent) error
}

type accessStore interface {
	Tokens(ctx context.Context, t fleet.TenantID) ([]fleet.Token, error)
	RevokeToken(ctx context.Context, t fleet.TenantID, id string, ev fleet.AuditEvent) error
}

type trustStore interface {
	Attestations(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) ([]fleet.Attestation, string, error)
	Waive(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, w fleet.Waiver, ev fleet.AuditEvent) error
	Revoke(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, why string, ev fleet.AuditEvent) error
	Readmit(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, ev fleet.AuditEvent) error
	FirmwareEvents(ctx context.Context, t fleet.TenantID, model string, state fleet.Approval, p fleet.Page) ([]fleet.FirmwareEvent, string, error)
	DecideFirmware(ctx context.Context, t fleet.TenantID, model string, pcr int, digest string, state fleet.Approval, ev fleet.AuditEvent) error
	References(ctx context.Context, model string) ([]fleet.BootReference, error)
	Waiting(ctx context.Context, t fleet.TenantID, p fleet.Page) ([]fleet.Waiting, string, error)
	Ownership(ctx context.Context, id fleet.DeviceID) (fleet.Ownership, error)
}
