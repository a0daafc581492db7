package api

import (
	"context"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// maxFile is how large a manifest or an order file may be, in bytes.
const maxFile = 64 << 20

// Owners know whose devices are; cloud/internal/owner fits. Whatever changes
// something writes to the audit trail who did it.
type Owners interface {
	Party(ctx context.Context, t fleet.TenantID) (fleet.Party, error)
	ImportManifest(ctx context.Context, t fleet.TenantID, file []byte, by string) (fleet.Batch, error)
	ImportVouchers(ctx context.Context, t fleet.TenantID, file []byte, by string) ([]fleet.Import, error)
	Claim(ctx context.Context, c fleet.Claim) (fleet.DeviceID, error)
	ClaimWaiting(ctx context.Context, c fleet.Claim) error
	ClaimOrder(ctx context.Context, t fleet.TenantID, vendor, order, by string) (int, error)
	Title(ctx context.Context, t fleet.TenantID, device fleet.DeviceID) (fleet.Title, error)
	Transfer(ctx context.Context, r fleet.Transfer) (fleet.Title, error)
	Object(ctx context.Context, t fleet.TenantID, device fleet.DeviceID, by, reason string) (fleet.Title, error)
}

type waiting struct {
	Device  string     `json:"device"`
	EKHash  string     `json:"ek_sha256"`
	Tier    string     `json:"tier" doc:"by its EK certificate; empty when only a list could vouch for it"`
	Model   string     `json:"model"`
	Serial  string     `json:"serial"`
	From    string     `json:"from" doc:"address it asked from last"`
	FirstAt *time.Time `json:"first_at"`
	LastAt  *time.Time `json:"last_at"`
	Listed  bool       `json:"listed" doc:"on a vendor's manifest: it is claimed with the code on its label"`
	Claimed bool       `json:"claimed" doc:"by this tenant; it has not come back since"`
}

func viewWaiting(w fleet.Waiting) waiting {
	return waiting{string(w.Device), w.EKHash, string(w.Tier), w.Model, w.Serial, w.From, when(w.FirstAt), when(w.LastAt), w.Listed, w.Claimed}
}

// party is someone who owns devices, as in a party file.
type party struct {
	Name   string `json:"name" minLength:"1" maxLength:"64"`
	Tenant string `json:"tenant,omitempty" maxLength:"32"`
	Key    []byte `json:"key" doc:"Ed25519 public key, 32 bytes in base64"`
}

func viewParty(p fleet.Party) party { return party{p.Name, string(p.Tenant), p.Key} }

type title struct {
	Device      string     `json:"device"`
	Vendor      string     `json:"vendor"`
	Model       string     `json:"model"`
	Serial      string     `json:"serial"`
	Order       string     `json:"order"`
	State       string     `json:"state" enum:"owned,offered,releasing,released"`
	Owner       party      `json:"owner"`
	Since       *time.Time `json:"since"`
	MayTransfer bool       `json:"may_transfer"`
	Next        *party     `json:"next" doc:"whom it is offered to"`
	Override    bool       `json:"override" doc:"the vendor offers it, for an owner who is lost"`
	NotBefore   *time.Time `json:"not_before" doc:"nobody may accept earlier"`
	Deadline    *time.Time `json:"deadline" doc:"until when the owner can object to the override"`
	Entries     int        `json:"entries"`
	Voucher     string     `json:"voucher" doc:"PEM; for the next owner, or back to the one before"`
}

func viewTitle(t fleet.Title) title {
	v := title{
		Device: string(t.Device), Vendor: t.Vendor, Model: t.Model, Serial: t.Serial, Order: t.Order, State: string(t.State), Owner: viewParty(t.Holder),
		Since: when(t.Since), MayTransfer: t.MayTransfer, Override: t.Override, NotBefore: when(t.NotBefore), Deadline: when(t.Deadline), Entries: t.Entries,
		Voucher: string(pem.EncodeToMemory(&pem.Block{Type: "TILLWARD VOUCHER", Bytes: t.Voucher})),
	}
	if t.Next != nil {
		next := viewParty(*t.Next)
		v.Next = &next
	}
	return v
}

type imported struct {
	Device  string `json:"device"`
	Serial  string `json:"serial"`
	Outcome string `json:"outcome" enum:"accepted,held,known,releasing,override,refused"`
	Text    string `json:"text"`
}

type batch struct {
	Vendor  string `json:"vendor"`
	Batch   string `json:"batch"`
	Order   string `json:"order"`
	Devices int    `json:"devices"`
	Added   int    `json:"added" doc:"that were not listed before"`
}

type claimed struct {
	Device string `json:"device"`
}

// file is an uploaded document.
type file struct {
	RawBody []byte `contentType:"application/octet-stream"`
}

func (s *server) owners() {
	huma.Register(s.api, huma.Operation{
		OperationID: "get-tenant", Method: http.MethodGet, Path: "/v1/tenant", Metadata: needs(fleet.Viewer),
		Summary: "Whom vouchers name as this tenant; for who offers it devices",
	}, func(ctx context.Context, _ *struct{}) (*body[party], error) {
		p, err := s.Owners.Party(ctx, who(ctx).Tenant)
		return &body[party]{viewParty(p)}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "import-manifest", Method: http.MethodPost, Path: "/v1/manifests", Metadata: needs(fleet.Admin),
		Summary: "Import a vendor's signed batch manifest", MaxBodyBytes: maxFile,
	}, func(ctx context.Context, in *file) (*body[batch], error) {
		b, err := s.Owners.ImportManifest(ctx, who(ctx).Tenant, in.RawBody, who(ctx).Name)
		return &body[batch]{batch(b)}, s.fault(ctx, err)
	})
	for _, op := range []struct{ id, path, summary string }{
		{"import-order", "/v1/orders", "Import an order file: vouchers that are offered to this tenant are accepted"},
		{"import-vouchers", "/v1/vouchers", "Import vouchers: accept those offered to this tenant, let go of devices that the next owner accepted"},
	} {
		huma.Register(s.api, huma.Operation{
			OperationID: op.id, Method: http.MethodPost, Path: op.path, Metadata: needs(fleet.Admin), Summary: op.summary, MaxBodyBytes: maxFile,
		}, s.importVouchers)
	}
	s.claims()
	s.transfers()
}

func (s *server) importVouchers(ctx context.Context, in *file) (*body[list[imported]], error) {
	all, err := s.Owners.ImportVouchers(ctx, who(ctx).Tenant, in.RawBody, who(ctx).Name)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	for _, i := range all {
		s.Changed(fleet.Change{Kind: fleet.ChangedDevice, ID: string(i.Device), Tenant: who(ctx).Tenant})
	}
	return pageOf(all, "", func(i fleet.Import) imported { return imported{string(i.Device), i.Serial, i.Outcome, i.Text} }), nil
}

func (s *server) claims() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-waiting", Method: http.MethodGet, Path: "/v1/waiting", Metadata: needs(fleet.Viewer), Summary: "Genuine devices that asked and that nobody owns",
	}, func(ctx context.Context, in *struct{ Paged }) (*body[list[waiting]], error) {
		items, next, err := s.Store.Waiting(ctx, who(ctx).Tenant, in.page())
		return pageOf(items, next, viewWaiting), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "claim", Method: http.MethodPost, Path: "/v1/claims", Metadata: needs(fleet.Admin), Summary: "Claim a device with the code on its label",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Code   string `json:"code,omitempty" maxLength:"128" doc:"as printed"`
			URI    string `json:"uri,omitempty" maxLength:"128" doc:"or what the label's QR code holds"`
			Device string `json:"device,omitempty" maxLength:"40" doc:"with a code; without it every device that waits is tried"`
			Site   string `json:"site,omitempty" maxLength:"64"`
			Group  string `json:"group,omitempty" maxLength:"64"`
		}
	},
	) (*body[claimed], error) {
		b := in.Body
		if (b.Code == "") == (b.URI == "") {
			return nil, huma.Error422UnprocessableEntity("give either code or uri, as it stands on the label")
		}
		device, err := s.Owners.Claim(ctx, fleet.Claim{
			Tenant: who(ctx).Tenant, Device: fleet.DeviceID(b.Device), Code: b.Code + b.URI, Site: b.Site, Group: b.Group, By: who(ctx).Name,
		})
		return &body[claimed]{claimed{string(device)}}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "claim-device", Method: http.MethodPost, Path: "/v1/claims/device", Metadata: needs(fleet.Admin), Summary: "Claim a device that waits, without a code",
		Description: "Only where the service's configuration allows it, and only a device whose TPM maker vouches for it and that has no label.",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Device string `json:"device" minLength:"1" maxLength:"40"`
			Site   string `json:"site,omitempty" maxLength:"64"`
			Group  string `json:"group,omitempty" maxLength:"64"`
		}
	},
	) (*body[claimed], error) {
		b := in.Body
		err := s.Owners.ClaimWaiting(ctx, fleet.Claim{Tenant: who(ctx).Tenant, Device: fleet.DeviceID(b.Device), Site: b.Site, Group: b.Group, By: who(ctx).Name})
		return &body[claimed]{claimed{b.Device}}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "claim-order", Method: http.MethodPost, Path: "/v1/claims/order", Metadata: needs(fleet.Admin), Summary: "Claim the devices that a vendor's manifests list for an order",
	}, func(ctx context.Context, in *struct {
		Body struct {
			Vendor string `json:"vendor" minLength:"1" maxLength:"64"`
			Order  string `json:"order" minLength:"1" maxLength:"64"`
		}
	},
	) (*body[struct {
		Devices int `json:"devices"`
	}], error,
	) {
		n, err := s.Owners.ClaimOrder(ctx, who(ctx).Tenant, in.Body.Vendor, in.Body.Order, who(ctx).Name)
		return &body[struct {
			Devices int `json:"devices"`
		}]{struct {
			Devices int `json:"devices"`
		}{n}}, s.fault(ctx, err)
	})
}

func (s *server) transfers() {
	huma.Register(s.api, huma.Operation{
		OperationID: "get-voucher", Method: http.MethodGet, Path: "/v1/devices/{id}/voucher", Metadata: needs(fleet.Viewer), Summary: "Whose a device is, and the voucher that says so",
	}, func(ctx context.Context, in *DeviceID) (*body[title], error) {
		t, err := s.Owners.Title(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID))
		return &body[title]{viewTitle(t)}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "transfer-device", Method: http.MethodPost, Path: "/v1/devices/{id}/transfer", Metadata: needs(fleet.Admin),
		Summary: "Offer a device to its next owner", Description: "Nothing changes before he accepts and the voucher that he signed comes back to POST /v1/vouchers.",
	}, func(ctx context.Context, in *struct {
		DeviceID
		Body struct {
			To          party      `json:"to"`
			NotBefore   *time.Time `json:"not_before,omitempty" doc:"when it may be accepted; at once by default"`
			MayTransfer bool       `json:"may_transfer" doc:"the next owner may pass it on; else he may only give it back"`
		}
	},
	) (*body[title], error) {
		b := in.Body
		r := fleet.Transfer{
			Tenant: who(ctx).Tenant, Device: fleet.DeviceID(in.ID), To: fleet.Party{Name: b.To.Name, Tenant: fleet.TenantID(b.To.Tenant), Key: b.To.Key},
			MayTransfer: b.MayTransfer, By: who(ctx).Name,
		}
		if b.NotBefore != nil {
			r.NotBefore = *b.NotBefore
		}
		t, err := s.Owners.Transfer(ctx, r)
		return s.entitled(ctx, t, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "object", Method: http.MethodPost, Path: "/v1/devices/{id}/transfer/object", Metadata: needs(fleet.Admin),
		Summary: "Void the open offer, or the vendor's override",
	}, func(ctx context.Context, in *struct {
		DeviceID
		Body because
	},
	) (*body[title], error) {
		t, err := s.Owners.Object(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID), who(ctx).Name, in.Body.Reason)
		return s.entitled(ctx, t, err)
	})
}

// entitled answers with a voucher that has grown.
func (s *server) entitled(ctx context.Context, t fleet.Title, err error) (*body[title], error) {
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.Changed(fleet.Change{Kind: fleet.ChangedDevice, ID: string(t.Device), Tenant: who(ctx).Tenant})
	return &body[title]{viewTitle(t)}, nil
}
