package simulator

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// FirstOS is the image that every till of a World boots first.
const FirstOS = "os/1.0.0"

const (
	simModel  = "tillward-sim-1" // of every till
	simVendor = "tillward-sim"   // who makes them
)

// Endpoints is where a device finds the service.
type Endpoints struct {
	MQTT, HTTPS string // host:port
	Roots       string // PEM file
}

// Endpoints returns where the service listens, without a till's line.
func (w *World) Endpoints() Endpoints {
	return Endpoints{MQTT: w.service.cfg.Device.MQTT, HTTPS: w.service.cfg.Device.HTTPS, Roots: w.service.roots()}
}

// Dir is the folder that everything lies below.
func (w *World) Dir() string { return w.opt.Dir }

// Model is that of every till.
func (w *World) Model() string { return simModel }

// Chip starts a TPM that is in no till yet.
func (w *World) Chip(ctx context.Context, name string) (*tpmfarm.TPM, error) {
	return w.farm.Start(ctx, filepath.Join(w.opt.Dir, "chips", name))
}

// publishBoot signs and publishes the reference values of the first boot: of a
// known-good box, as a release engineer observes it.
func (w *World) publishBoot(ctx context.Context) error {
	if err := w.provision(ctx, "key", "create", w.sealKey(), "--sealing", w.sealPublic()); err != nil {
		return err
	}
	agent := filepath.Join(w.opt.Bin, "tillward-agent")
	version, err := exec.CommandContext(ctx, agent, "-version").Output() // #nosec G204 -- our own binary
	if err != nil {
		return fmt.Errorf("%s: %w; make build makes it", agent, err)
	}
	file, err := w.firstBoot(ctx, "agent/"+strings.TrimSpace(string(version)))
	if err != nil {
		return err
	}
	if err := w.provision(ctx, "boot", "add", "--repo", w.repo(), "--keys", w.keys(), "--reference", file); err != nil {
		return err
	}
	return w.cli(ctx, nil, "release", "publish", "--repo", w.repo())
}

// firstBoot is the reference of a release that boots as every till first does:
// a new agent changes nothing that the firmware measures.
func (w *World) firstBoot(ctx context.Context, release string) (string, error) {
	log := filepath.Join(w.opt.Dir, "release", strings.ReplaceAll(release, "/", "-")+".log")
	if err := os.WriteFile(log, tpmfarm.Default(FirstOS).Log(), 0o600); err != nil {
		return "", fmt.Errorf("reference values: %w", err)
	}
	return w.observe(ctx, release, log)
}

// observe makes the reference of a release out of the log of a good boot, and
// approves that what is sealed opens in it.
func (w *World) observe(ctx context.Context, release, log string) (string, error) {
	file := log + ".json"
	if err := w.provision(ctx, "boot", "observe", "--log", log, "--model", simModel, "--release", release, "--out", file); err != nil {
		return "", err
	}
	return file, w.provision(ctx, "boot", "approve", "--log", log, "--reference", file, "--key", w.sealKey())
}

// Signer is a role of the release repository whose keys several people have.
type Signer struct {
	Role       string // as agent/prod
	Keys, Need int    // how many there are, and how many must sign
}

// makeSigners makes the keys of those who sign releases, and says how many must.
// Where there are several, snapshot and timestamp are signed by the service, as
// in the field.
func (w *World) makeSigners() (args []string, err error) {
	if len(w.opt.Signers) == 0 {
		return nil, nil
	}
	create := func(file string) error {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("release keys: %w", err)
		}
		_, err := trust.NewKey(file)
		return err
	}
	for _, s := range w.opt.Signers {
		for i := range s.Keys {
			file := filepath.Join(w.keys(), filepath.FromSlash(s.Role))
			if i > 0 {
				file = fmt.Sprintf("%s-%d", file, i+1)
			}
			if err := create(file + ".pem"); err != nil {
				return nil, err
			}
		}
		args = append(args, "--threshold", fmt.Sprintf("%s=%d", s.Role, s.Need))
	}
	online := filepath.Join(w.opt.Dir, "service", "online.key")
	if err := create(online); err != nil {
		return nil, err
	}
	for _, role := range []string{trust.RoleSnapshot, trust.RoleTimestamp} {
		if err := os.Link(online, filepath.Join(w.keys(), role+".pem")); err != nil {
			return nil, fmt.Errorf("release keys: %w", err)
		}
	}
	return args, nil
}

func (w *World) sealKey() string    { return filepath.Join(w.opt.Dir, "release", "seal.pem") }
func (w *World) sealPublic() string { return filepath.Join(w.opt.Dir, "release", "seal.pub") }

// ReleaseBoot signs and publishes agent/version together with the reference
// values of its boot, whose event log is in a file.
func (w *World) ReleaseBoot(ctx context.Context, version, release, log string) error {
	file, err := w.observe(ctx, release, log)
	if err != nil {
		return err
	}
	return w.publish(ctx, version, filepath.Join(w.opt.Bin, "tillward-agent"), file)
}

// publish signs and publishes an agent together with the reference in a file.
func (w *World) publish(ctx context.Context, version, binary, reference string) error {
	err := w.provision(ctx, "release", "add", "--repo", w.repo(), "--keys", w.keys(), "--binary", binary, "--version", version, "--boot", reference)
	if err != nil {
		return err
	}
	return w.cli(ctx, nil, "release", "publish", "--repo", w.repo())
}

// RolloutTo starts a rollout to one group and returns its id.
func (w *World) RolloutTo(ctx context.Context, release, group string) (string, error) {
	var r struct {
		ID string `json:"id"`
	}
	err := w.cli(ctx, &r, "rollout", "start", release, "--group", group)
	return r.ID, err
}

// Execution is the id of a device's part in a rollout; empty until it has been
// offered.
func (w *World) Execution(ctx context.Context, rollout, device string) (string, error) {
	items, err := all[struct {
		ID     string `json:"id"`
		Device string `json:"device"`
		State  string `json:"state"`
	}](ctx, w.Operator, "/v1/rollouts/"+rollout+"/executions?")
	for _, e := range items {
		if e.Device == device && e.State != "QUEUED" {
			return e.ID, err
		}
	}
	return "", err
}

// Ship puts a box on the vendor's manifest, imports that and returns the claim
// code on its label.
func (w *World) Ship(ctx context.Context, dev *tpm.TPM, serial string) (owner.Claim, error) {
	ek, _, _, err := dev.Endorsement(ctx)
	if err != nil {
		return owner.Claim{}, err
	}
	return w.list(ctx, ek, serial)
}

// list signs a manifest of one device and imports it.
func (w *World) list(ctx context.Context, ek []byte, serial string) (owner.Claim, error) {
	claim := owner.NewClaim(identity.DeviceID(ek))
	manifest, err := owner.SignManifest(w.vendor, owner.Manifest{
		Vendor: simVendor, Batch: serial, MadeAt: time.Now(),
		Entries: []owner.Listed{{EKHash: enrol.Hash(ek), Model: simModel, Serial: serial, ClaimHash: claim.Hash()}},
	})
	if err != nil {
		return owner.Claim{}, err
	}
	file := filepath.Join(w.opt.Dir, serial+".manifest")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		return owner.Claim{}, fmt.Errorf("manifest: %w", err)
	}
	return claim, w.cli(ctx, nil, "manifest", "import", file)
}

// foundVendor makes the key of the maker of these tills.
func (w *World) foundVendor() error {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	w.vendor = key
	if err := os.WriteFile(w.vendorKey(), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("key of the vendor: %w", err)
	}
	return nil
}

func (w *World) vendorKey() string { return filepath.Join(w.opt.Dir, "vendor.pem") }
