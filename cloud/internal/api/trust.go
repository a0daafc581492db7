package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// maxWaiver is how long one word of an administrator lets a device in.
const maxWaiver = 30 * 24 * time.Hour

type waiver struct {
	Until  *time.Time `json:"until"`
	By     string     `json:"by"`
	Reason string     `json:"reason"`
}

type certificate struct {
	Serial   string     `json:"serial"`
	NotAfter *time.Time `json:"not_after"`
	Next     *renewed   `json:"next" doc:"issued and not shown yet; the older one ends when it is"`
	Recovery string     `json:"recovery" doc:"serial number of the certificate that only opens quarantine"`
}

type renewed struct {
	Serial   string     `json:"serial"`
	NotAfter *time.Time `json:"not_after"`
}

type ownership struct {
	State    string     `json:"state" enum:"owned,offered,releasing,released"`
	Owner    string     `json:"owner"`
	Deadline *time.Time `json:"deadline" doc:"of an override: until then the owner can object"`
	Entries  int        `json:"entries"`
}

type attestation struct {
	At         *time.Time      `json:"at"`
	Trust      string          `json:"trust"`
	Release    string          `json:"release" doc:"whose reference values the boot has; empty when nothing was judged"`
	ResetCount uint32          `json:"reset_count"`
	Digest     string          `json:"digest"`
	Findings   []fleet.Finding `json:"findings"`
}

type firmwareEvent struct {
	Model   string     `json:"model"`
	PCR     int        `json:"pcr"`
	Digest  string     `json:"digest"`
	What    string     `json:"what"`
	Devices int        `json:"devices" doc:"that have shown it"`
	FirstAt *time.Time `json:"first_at"`
	First   string     `json:"first"`
	State   string     `json:"state" enum:"open,approved,rejected"`
	By      string     `json:"by"`
	At      *time.Time `json:"at"`
}

type reference struct {
	Model       string          `json:"model"`
	Release     string          `json:"release"`
	PublishedAt *time.Time      `json:"published_at"`
	Body        json.RawMessage `json:"body" doc:"the reference values as they were signed"`
}

type issuing struct {
	Serial    string     `json:"serial"`
	NotBefore *time.Time `json:"not_before"`
	NotAfter  *time.Time `json:"not_after"`
	Current   bool       `json:"current" doc:"signs; the others are only believed"`
}

// trusted fills in what a device's identity and boot rest on.
func (v *device) trusted(d fleet.Device) {
	v.Findings = append([]fleet.Finding{}, d.Findings...)
	v.BootRelease, v.BootDigest, v.ResetCount = d.BootRelease, hex.EncodeToString(d.BootDigest), d.ResetCount
	v.RevokedAt, v.RevokedWhy = when(d.RevokedAt), d.RevokedWhy
	v.FormerOf, v.LeftAt = string(d.FormerOf), when(d.LeftAt)
	if !d.Waiver.Until.IsZero() {
		v.Waiver = &waiver{when(d.Waiver.Until), d.Waiver.By, d.Waiver.Reason}
	}
	v.Certificate = certificate{Serial: d.CertSerial, NotAfter: when(d.CertNotAfter), Recovery: d.Recovery}
	if d.Next.CertSerial != "" {
		v.Certificate.Next = &renewed{d.Next.CertSerial, when(d.Next.NotAfter)}
	}
}

func viewAttestation(a fleet.Attestation) attestation {
	return attestation{when(a.At), string(a.Trust), a.Release, a.ResetCount, hex.EncodeToString(a.Digest), append([]fleet.Finding{}, a.Findings...)}
}

func viewFirmware(e fleet.FirmwareEvent) firmwareEvent {
	return firmwareEvent{e.Model, e.PCR, e.Digest, e.What, e.Devices, when(e.FirstAt), string(e.First), string(e.State), e.By, when(e.At)}
}

func viewReference(r fleet.BootReference) reference {
	v := reference{r.Model, string(r.Release), when(r.PublishedAt), json.RawMessage("null")}
	if json.Valid(r.Body) {
		v.Body = r.Body
	}
	return v
}

func viewIssuing(a fleet.Authority) issuing {
	return issuing{a.Serial, when(a.NotBefore), when(a.NotAfter), a.Current}
}

// deed is an entry of the service's trail about what an operator did.
func deed(ctx context.Context, kind, severity, subject string, detail map[string]string) fleet.AuditEvent {
	return fleet.AuditEvent{At: time.Now(), Kind: kind, Severity: severity, Actor: who(ctx).Name, Subject: subject, Detail: detail}
}

// because is why an operator does what cannot be seen from the deed.
type because struct {
	Reason string `json:"reason" minLength:"1" maxLength:"512"`
}

// changed answers with the device as it is now, and has consoles fetch it.
func (s *server) changed(ctx context.Context, id string, err error) (*body[device], error) {
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.Changed(fleet.Change{Kind: fleet.ChangedDevice, ID: id, Tenant: who(ctx).Tenant})
	return s.device(ctx, &DeviceID{id})
}

func (s *server) trust() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-attestations", Method: http.MethodGet, Path: "/v1/devices/{id}/attestations", Metadata: needs(fleet.Viewer),
		Summary: "What the verifier said about a device, newest first",
	}, func(ctx context.Context, in *struct {
		DeviceID
		Paged
	},
	) (*body[list[attestation]], error) {
		items, next, err := s.Store.Attestations(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID), in.page())
		return pageOf(items, next, viewAttestation), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "attest-device", Method: http.MethodPost, Path: "/v1/devices/{id}/attest", Metadata: needs(fleet.Operator), DefaultStatus: http.StatusAccepted,
		Summary: "Ask a connected device for fresh evidence now",
	}, s.attest)
	huma.Register(s.api, huma.Operation{
		OperationID: "waive-device", Method: http.MethodPut, Path: "/v1/devices/{id}/waiver", Metadata: needs(fleet.Admin),
		Summary: "Let a quarantined device in until a date", Description: "At most 30 days. It never waives a false quote or a revoked identity.",
	}, s.waive)
	huma.Register(s.api, huma.Operation{
		OperationID: "end-waiver", Method: http.MethodDelete, Path: "/v1/devices/{id}/waiver", Metadata: needs(fleet.Admin), Summary: "Take a waiver back",
	}, func(ctx context.Context, in *DeviceID) (*body[device], error) {
		id := fleet.DeviceID(in.ID)
		err := s.Store.Waive(ctx, who(ctx).Tenant, id, fleet.Waiver{}, deed(ctx, "device.waiver-ended", "info", in.ID, nil))
		if err == nil {
			s.Disconnect(id, "its waiver was taken back") // a challenge it could leave unanswered
		}
		return s.changed(ctx, in.ID, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "revoke-device", Method: http.MethodPost, Path: "/v1/devices/{id}/revoke", Metadata: needs(fleet.Admin),
		Summary: "Shut a device out, now", Description: "Its connection is cut at once and none of its certificates opens anything, until it is readmitted.",
	}, func(ctx context.Context, in *struct {
		DeviceID
		Body because
	},
	) (*body[device], error) {
		id := fleet.DeviceID(in.ID)
		err := s.Store.Revoke(ctx, who(ctx).Tenant, id, in.Body.Reason, deed(ctx, "device.revoked", "alarm", in.ID, map[string]string{"reason": in.Body.Reason}))
		if err == nil {
			s.Disconnect(id, "revoked")
		}
		return s.changed(ctx, in.ID, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "readmit-device", Method: http.MethodPost, Path: "/v1/devices/{id}/readmit", Metadata: needs(fleet.Admin), Summary: "Let a revoked device enrol again",
	}, func(ctx context.Context, in *struct {
		DeviceID
		Body because
	},
	) (*body[device], error) {
		ev := deed(ctx, "device.readmitted", "warn", in.ID, map[string]string{"reason": in.Body.Reason})
		return s.changed(ctx, in.ID, s.Store.Readmit(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID), ev))
	})
	s.firmware()
	s.authority()
}

func (s *server) attest(ctx context.Context, in *DeviceID) (*struct{}, error) {
	id := fleet.DeviceID(in.ID)
	d, err := s.Store.Device(ctx, who(ctx).Tenant, id)
	switch {
	case err != nil:
	case !d.Online:
		err = fmt.Errorf("device %s is not connected; it shows evidence as soon as it is: %w", in.ID, fleet.ErrConflict)
	default:
		err = s.Challenge(id)
	}
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.note(ctx, deed(ctx, "attest.requested", "info", in.ID, nil))
	return nil, nil
}

func (s *server) waive(ctx context.Context, in *struct {
	DeviceID
	Body struct {
		Until  time.Time `json:"until"`
		Reason string    `json:"reason" minLength:"1" maxLength:"512"`
	}
},
) (*body[device], error) {
	id, w := fleet.DeviceID(in.ID), fleet.Waiver{Until: in.Body.Until, By: who(ctx).Name, Reason: in.Body.Reason}
	if left := time.Until(w.Until); left <= 0 || left > maxWaiver {
		return nil, huma.Error422UnprocessableEntity("a waiver ends within the next 30 days; give until accordingly")
	}
	had, err := s.Store.Device(ctx, who(ctx).Tenant, id)
	if err == nil {
		err = s.Store.Waive(ctx, who(ctx).Tenant, id, w, deed(ctx, "device.waived", "warn", in.ID, map[string]string{
			"until": w.Until.UTC().Format(time.RFC3339), "reason": w.Reason,
		}))
	}
	switch {
	case err != nil:
	case had.Waiver.Until.After(w.Until):
		s.Disconnect(id, "its waiver ends sooner") // a challenge it could leave unanswered
	default:
		_ = s.Challenge(id) // who is away shows evidence when it is back
	}
	return s.changed(ctx, in.ID, err)
}

func (s *server) firmware() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-firmware", Method: http.MethodGet, Path: "/v1/firmware", Metadata: needs(fleet.Viewer),
		Summary: "Firmware events that no reference values know, and what was decided about them",
	}, func(ctx context.Context, in *struct {
		Paged
		Model string `query:"model" maxLength:"64"`
		State string `query:"state" enum:"open,approved,rejected"`
	},
	) (*body[list[firmwareEvent]], error) {
		items, next, err := s.Store.FirmwareEvents(ctx, who(ctx).Tenant, in.Model, fleet.Approval(in.State), in.page())
		return pageOf(items, next, viewFirmware), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "decide-firmware", Method: http.MethodPost, Path: "/v1/firmware/decision", Metadata: needs(fleet.Admin), DefaultStatus: http.StatusNoContent,
		Summary: "Approve or reject a firmware event, once for all devices of the model",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Model    string `json:"model" minLength:"1" maxLength:"64"`
			PCR      int    `json:"pcr" minimum:"0" maximum:"23"`
			Digest   string `json:"digest" pattern:"^[0-9a-f]{64}$" doc:"hex SHA-256"`
			Decision string `json:"decision" enum:"approved,rejected,open" doc:"open takes a decision back"`
			Reason   string `json:"reason" minLength:"1" maxLength:"512"`
		}
	},
	) (*struct{}, error) {
		b := in.Body
		ev := deed(ctx, "firmware.decided", "warn", b.Model, map[string]string{"pcr": strconv.Itoa(b.PCR), "event": b.Digest, "decision": b.Decision, "reason": b.Reason})
		err := s.Store.DecideFirmware(ctx, who(ctx).Tenant, b.Model, b.PCR, b.Digest, fleet.Approval(b.Decision), ev)
		if err == nil {
			s.Reappraise(b.Model)
		}
		return nil, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "list-references", Method: http.MethodGet, Path: "/v1/references", Metadata: needs(fleet.Viewer), Summary: "Reference values of a model's releases",
	}, func(ctx context.Context, in *struct {
		Model string `query:"model" required:"true" minLength:"1" maxLength:"64"`
	},
	) (*body[list[reference]], error) {
		items, err := s.Store.References(ctx, in.Model)
		return pageOf(items, "", viewReference), s.fault(ctx, err)
	})
}

func (s *server) authority() {
	huma.Register(s.api, huma.Operation{
		OperationID: "get-authority", Method: http.MethodGet, Path: "/v1/authority", Metadata: needs(fleet.Viewer), Summary: "Who signs device certificates",
	}, func(ctx context.Context, _ *struct{}) (*body[list[issuing]], error) {
		return pageOf(s.Authorities(), "", viewIssuing), nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "rotate-authority", Method: http.MethodPost, Path: "/v1/authority/rotate", Metadata: needs(fleet.Admin),
		Summary:     "Sign with a new issuing certificate from now on",
		Description: "The old one is believed until the last certificate that it signed has ended; connected devices renew theirs without a break.",
	}, func(ctx context.Context, in *struct{ Body because }) (*body[list[issuing]], error) {
		if err := s.Rotate(ctx); err != nil {
			return nil, s.fault(ctx, err)
		}
		all := s.Authorities()
		serial := ""
		for _, a := range all {
			if a.Current {
				serial = a.Serial
			}
		}
		s.note(ctx, deed(ctx, "authority.rotated", "warn", serial, map[string]string{"reason": in.Body.Reason}))
		return pageOf(all, "", viewIssuing), nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "retire-authority", Method: http.MethodPost, Path: "/v1/authority/retire", Metadata: needs(fleet.Admin),
		Summary:     "Believe an older issuing certificate no more",
		Description: "Nothing it signed counts from then on: devices that have not renewed are cut off and enrol anew. For a stolen key, after a rotation.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Serial string `json:"serial" minLength:"1" maxLength:"64" doc:"as GET /v1/authority gives it"`
			Reason string `json:"reason" minLength:"1" maxLength:"512"`
		}
	},
	) (*body[list[issuing]], error) {
		if err := s.Retire(in.Body.Serial); err != nil {
			return nil, s.fault(ctx, err)
		}
		s.note(ctx, deed(ctx, "authority.retired", "alarm", in.Body.Serial, map[string]string{"reason": in.Body.Reason}))
		return pageOf(s.Authorities(), "", viewIssuing), nil
	})
}
