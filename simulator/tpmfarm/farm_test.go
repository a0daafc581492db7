package tpmfarm_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// parentDir tells this test binary to be a parent that starts a TPM in the
// folder and then waits to be killed.
const parentDir = "TILLWARD_TEST_TPM_PARENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentDir); dir != "" {
		os.Exit(parent(dir))
	}
	os.Exit(m.Run())
}

func parent(dir string) int {
	farm, err := tpmfarm.Open(context.Background(), dir)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	chip, err := farm.Start(context.Background(), filepath.Join(dir, "till"))
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println("socket:", chip.Socket())
	select {}
}

func open(t *testing.T, dir string) *tpmfarm.Farm {
	t.Helper()
	farm, err := tpmfarm.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	return farm
}

func start(t *testing.T, farm *tpmfarm.Farm, dir string) *tpmfarm.TPM {
	t.Helper()
	chip, err := farm.Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return chip
}

// endorsement returns a TPM's EK and its certificate.
func endorsement(t *testing.T, chip *tpmfarm.TPM) (string, *x509.Certificate) {
	t.Helper()
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	pub, der, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return string(pub), cert
}

func authority(t *testing.T, farm *tpmfarm.Farm) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(farm.CA())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestEachTPMIsAnother(t *testing.T) {
	farm := open(t, t.TempDir())
	var seen []string
	for range 3 {
		ek, cert := endorsement(t, start(t, farm, t.TempDir()))
		if slices.Contains(seen, ek) {
			t.Error("two TPMs have one endorsement key")
		}
		seen = append(seen, ek)
		if err := cert.CheckSignatureFrom(authority(t, farm)); err != nil {
			t.Error(err)
		}
	}
}

// Some makers certify a key of the high range only.
func TestP384EndorsementKey(t *testing.T) {
	farm := open(t, t.TempDir())
	farm.P384 = true
	_, cert := endorsement(t, start(t, farm, t.TempDir()))
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() {
		t.Errorf("the certificate is for a %T, want P-384", cert.PublicKey)
	}
}

// A simulator that is run again on its folder finds the same TPMs, and an
// authority that stands behind all of them.
func TestSameFolderIsSameTPMAndAuthority(t *testing.T) {
	farms, state := t.TempDir(), t.TempDir()
	farm := open(t, farms)
	before, _ := endorsement(t, start(t, farm, state))
	farm.Close()
	farm = open(t, farms)
	after, cert := endorsement(t, start(t, farm, state))
	if before != after {
		t.Error("the TPM changed with a restart of the farm")
	}
	if err := cert.CheckSignatureFrom(authority(t, farm)); err != nil {
		t.Errorf("EK certificate of the first run: %v", err)
	}
	if fi, err := os.Stat(filepath.Join(farms, "ek-authority.key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want mode 0600", fi, err)
	}
}

// A run that was killed between NV write and mark is finished by the next.
func TestProvisioningIsFinishedByTheNextRun(t *testing.T) {
	farm, state := open(t, t.TempDir()), t.TempDir()
	start(t, farm, state).Stop()
	if err := os.Remove(filepath.Join(state, "provisioned")); err != nil {
		t.Fatal(err)
	}
	if _, cert := endorsement(t, start(t, farm, state)); cert == nil {
		t.Error("no EK certificate")
	}
}

func TestRunningTPMIsNotStartedTwice(t *testing.T) {
	farm, state := open(t, t.TempDir()), t.TempDir()
	chip := start(t, farm, state)
	if _, err := farm.Start(t.Context(), state); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("got %v, want that it runs already", err)
	}
	if _, cert := endorsement(t, chip); cert == nil {
		t.Error("the running TPM was hurt")
	}
}

func TestStopLeavesNothing(t *testing.T) {
	chip := start(t, open(t, t.TempDir()), t.TempDir())
	chip.Stop()
	chip.Stop()
	if _, err := net.Dial("unix", chip.Socket()); err == nil {
		t.Error("something still listens")
	}
}

func TestStartSaysWhy(t *testing.T) {
	farm, state := open(t, t.TempDir()), t.TempDir()
	start(t, farm, state).Stop()
	if err := os.WriteFile(filepath.Join(state, "tpm2-00.permall"), []byte("not a state"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := farm.Start(t.Context(), state); err == nil || !strings.Contains(err.Error(), "ended at once") {
		t.Errorf("TPM with a broken state: got %v, want why it does not start", err)
	}
}

// kill -9 of the simulator takes its TPMs along.
func TestKilledParentLeavesNothing(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), parentDir+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	socket, ok := strings.CutPrefix(strings.TrimSpace(line), "socket: ")
	if !ok {
		_ = cmd.Process.Kill()
		t.Fatalf("got %q and %v, want a socket", line, err)
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// The kernel closes the connection when the TPM's process ends.
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("TPM is still there after kill -9 of its parent: %v", err)
	}
}

// Children of this process that are to die with it live on when a TPM is
// stopped: no thread may end with it, for theirs might be the one.
func TestEndOfTPMEndsNobodyElse(t *testing.T) {
	chip := start(t, open(t, t.TempDir()), t.TempDir())
	var others []*exec.Cmd
	ended := make(chan error, 32)
	for range cap(ended) {
		other := exec.Command("sleep", "600")
		other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		began := make(chan error)
		go func() { began <- other.Start() }() // by whatever thread
		if err := <-began; err != nil {
			t.Fatal(err)
		}
		go func() { ended <- other.Wait() }()
		others = append(others, other)
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-ended:
		t.Errorf("one of %d others ended with a TPM: %v", len(others), err)
	default:
	}
	for _, other := range others {
		_ = other.Process.Kill()
	}
}
