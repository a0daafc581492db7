package tpmfarm_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-attestation/attest"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// boots is a till that has booted: what it quotes and the log it wrote.
func boots(t *testing.T, chip *tpmfarm.TPM, f tpmfarm.Firmware) (pcrs [][]byte, log []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "security", "binary_bios_measurements")
	if err := f.Boot(chip, file); err != nil {
		t.Fatal(err)
	}
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	extra := sha256.Sum256([]byte(t.Name()))
	quote, signature, pcrs, err := dev.Quote(t.Context(), extra[:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enrol.VerifyQuote(ak, quote, signature, pcrs, extra); err != nil {
		t.Fatal(err)
	}
	if log, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	return pcrs, log
}

// The log of a virtual boot holds against a real TPM's quote, read by the
// library as it is and by the service.
func TestVirtualBootHoldsAgainstAQuote(t *testing.T) {
	f := tpmfarm.Default("os/1.0.0")
	chip := start(t, open(t, t.TempDir()), t.TempDir())
	pcrs, raw := boots(t, chip, f)
	if want := f.Registers(); !slices.EqualFunc(pcrs, want, bytes.Equal) {
		t.Errorf("registers: got %x, want %x", pcrs, want)
	}
	log, err := attest.ParseEventLog(raw)
	if err != nil {
		t.Fatal(err)
	}
	var values []attest.PCR
	for i, p := range pcrs {
		values = append(values, attest.PCR{Index: i, Digest: p, DigestAlg: crypto.SHA256})
	}
	verified, err := log.Verify(values)
	if err != nil || len(verified) != len(f.Events) {
		t.Errorf("go-attestation: got %d events and %v, want %d", len(verified), err, len(f.Events))
	}
	if state, err := attest.ParseSecurebootState(verified); err != nil || !state.Enabled {
		t.Errorf("Secure Boot: got %+v, %v", state, err)
	}
	if events, err := boot.ParseLog(raw, pcrs); err != nil || len(events) != len(f.Events) {
		t.Errorf("got %d events and %v, want %d", len(events), err, len(f.Events))
	}
	for release, trust := range map[string]string{"os/1.0.0": boot.Attested, "os/1.1.0": boot.Quarantined} {
		r, err := tpmfarm.Default(release).Reference("till", release)
		if err != nil {
			t.Fatal(err)
		}
		if got := boot.Appraise([]boot.Reference{r}, nil, pcrs, raw); got.Trust != trust {
			t.Errorf("measured against %s: got %+v, want %s", release, got, trust)
		}
	}
}

// A till that was attacked before the agent started.
func TestTamperedBootDoesNotHold(t *testing.T) {
	farm := open(t, t.TempDir())
	chip := start(t, farm, t.TempDir())
	good := tpmfarm.Default("os/1.0.0")
	for name, tamper := range map[string]func(f tpmfarm.Firmware){
		"stripped event": func(f tpmfarm.Firmware) { f.Event("kernel").Hidden = true },
		"added event":    func(f tpmfarm.Firmware) { f.Event("kernel").Faked = true },
	} {
		f := tpmfarm.Default("os/1.0.0")
		tamper(f)
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		pcrs, raw := boots(t, chip, f)
		if events, err := boot.ParseLog(raw, pcrs); err == nil || !strings.Contains(err.Error(), "PCR 9") {
			t.Errorf("%s: got %d events and %v, want that PCR 9 does not add up", name, len(events), err)
		}
	}
	if err := chip.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pcrs, raw := boots(t, chip, good); !slices.EqualFunc(pcrs, good.Registers(), bytes.Equal) || len(raw) == 0 {
		t.Error("the honest boot after it differs")
	}
	if err := good.Boot(chip, filepath.Join(t.TempDir(), "log")); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("second boot without a restart: got %v", err)
	}
}

func TestFirmwareWithoutAnEvent(t *testing.T) {
	f := tpmfarm.Default("os/1.0.0")
	short := f.Without("kernel", "agent")
	if len(short.Events) != len(f.Events)-2 || !bytes.Equal(short.Registers()[9], make([]byte, 32)) {
		t.Errorf("got %d events, PCR 9 %x", len(short.Events), short.Registers()[9])
	}
	defer func() {
		if recover() == nil {
			t.Error("an event that is not there was found")
		}
	}()
	short.Event("kernel")
}
