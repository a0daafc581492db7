package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// operation is what a device does with its TPM in more than one command. It can
// be done again, on the TPM as whatever happened has left it.
type operation struct {
	name  string
	ready func(t *testing.T, dev *tpm.TPM) // what was there before the first fault
	run   func(t *testing.T, dev *tpm.TPM) error
	most  int              // commands; at 300 ms each
	gone  string           // what it says after TPM2_Clear; empty: it succeeds
	kind  string           // of the EK; empty: P-256
	cuts  func(n int) bool // which commands are cut; nil: all
}

var operations = []operation{
	{name: "enrol", run: enrolOnce, most: 60},
	// What differs by the kind of EK is where its certificate is, and how it is
	// made and opens a credential.
	{name: "enrol P-384", kind: "P-384", run: enrolOnce, most: 60, cuts: func(n int) bool { return n%3 == 0 }},
	{name: "enrol RSA-2048", kind: "RSA-2048", run: enrolOnce, most: 60, cuts: func(n int) bool { return n%12 == 0 }},
	{name: "rotate LDevID", ready: haveKeys, run: rotateLDevID, most: 40},
	{name: "rotate AK", ready: haveKeys, run: rotateAK, most: 60},
	{name: "seal", run: sealOnce, most: 40},
	{name: "floor", run: raiseFloor, most: 300, gone: "the floor counter was removed", cuts: sparse},
	{name: "root floor", run: raiseRootFloor, most: 60},
	{name: "anchor", run: anchorTwice, most: 400, cuts: func(n int) bool { return sparse(n) || n > 352 }},
}

// sparse cuts an operation that is the same command two hundred times over.
func sparse(n int) bool { return n <= 6 || n%128 == 0 }

func haveKeys(t *testing.T, dev *tpm.TPM) { _, _ = keysOf(t, dev) }

// enrolOnce is the TPM's part of an enrolment.
func enrolOnce(t *testing.T, dev *tpm.TPM) error {
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		return err
	}
	ak, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		return err
	}
	recovery, err := dev.Recovery(t.Context())
	if err != nil {
		return err
	}
	blob, secret := credential(t, ek, ak)
	opened, err := dev.Activate(t.Context(), blob, secret)
	if err != nil {
		return err
	}
	if string(opened) != "secret" {
		return fmt.Errorf("activated %q", opened)
	}
	extra := make([]byte, 32)
	attest, sig, err := dev.Certify(t.Context(), extra)
	if err != nil {
		return err
	}
	certifies(t, ak, ldevid, extra, attest, sig)
	if attest, sig, err = dev.CertifyKey(t.Context(), recovery, extra); err != nil {
		return err
	}
	certifies(t, ak, recovery, extra, attest, sig)
	_, _, _, err = dev.Quote(t.Context(), extra)
	return err
}

func rotateLDevID(t *testing.T, dev *tpm.TPM) error {
	ak, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		return err
	}
	if err := dev.UseLDevID(t.Context(), ldevid); err != nil {
		return err
	}
	next, err := dev.NextLDevID(t.Context())
	if err != nil {
		return err
	}
	attest, sig, err := dev.CertifyKey(t.Context(), next, make([]byte, 32))
	if err != nil {
		return err
	}
	certifies(t, ak, next, make([]byte, 32), attest, sig)
	if err := dev.KeepLDevID(t.Context(), next); err != nil {
		return err
	}
	key, err := dev.SignerFor(t.Context(), next)
	if err != nil {
		return err
	}
	_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

func rotateAK(t *testing.T, dev *tpm.TPM) error {
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		return err
	}
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		return err
	}
	if err := dev.UseAK(t.Context(), ak); err != nil {
		return err
	}
	unique := make([]byte, 32)
	_, _ = rand.Read(unique)
	next, err := dev.NextAK(t.Context(), unique)
	if err != nil {
		return err
	}
	attest, sig, err := dev.CertifyNextAK(t.Context(), make([]byte, 32))
	if err != nil {
		return err
	}
	certifies(t, ak, next, make([]byte, 32), attest, sig)
	blob, secret := credential(t, ek, next)
	if _, err := dev.ActivateNextAK(t.Context(), blob, secret); err != nil {
		return err
	}
	if err := dev.KeepAK(t.Context(), next); err != nil {
		return err
	}
	if now, _, err := dev.Keys(t.Context()); err != nil || !bytes.Equal(now, next) {
		return fmt.Errorf("the kept AK is not in use: %w", err)
	}
	return nil
}

// sealOnce approves PCR 7 as swtpm starts with it.
func sealOnce(t *testing.T, dev *tpm.TPM) error {
	r := newRelease(t)
	blob, err := dev.Seal(t.Context(), r.public, sealRef, []byte("secret"))
	if err != nil {
		return err
	}
	got, err := dev.Unseal(t.Context(), r.public, blob, r.approve(t, map[int][]byte{7: make([]byte, 32)}, 0))
	if err == nil && string(got) != "secret" {
		err = fmt.Errorf("unsealed %q", got)
	}
	return err
}

func raiseFloor(t *testing.T, dev *tpm.TPM) error {
	now, err := dev.Floor(t.Context())
	if err != nil {
		return err
	}
	if err := dev.RaiseFloor(t.Context(), now+2); err != nil {
		return err
	}
	if n, err := dev.Floor(t.Context()); err != nil || n != now+2 {
		return fmt.Errorf("floor %d, want %d: %w", n, now+2, err)
	}
	return nil
}

func raiseRootFloor(t *testing.T, dev *tpm.TPM) error {
	now, err := dev.RootFloor(t.Context())
	if err != nil {
		return err
	}
	for _, to := range []uint64{now + 1, now + 3, now + 2} {
		if err := dev.RaiseRootFloor(t.Context(), to); err != nil {
			return err
		}
	}
	if n, err := dev.RootFloor(t.Context()); err != nil || n != now+3 {
		return fmt.Errorf("floor of the release root %d, want %d: %w", n, now+3, err)
	}
	return nil
}

// anchorTwice makes the counter and counts on; TPM2_Clear makes it another one
// that goes on above, and no cut lowers it.
func anchorTwice(t *testing.T, dev *tpm.TPM) error {
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		return err
	}
	var last uint64
	for i := range byte(2) {
		binding := [32]byte{i}
		attest, sig, counter, err := dev.Anchor(t.Context(), binding)
		if err != nil {
			return err
		}
		if err := enrol.VerifyAnchor(ak, binding, attest, sig, counter); err != nil {
			return err
		}
		if counter <= last {
			return fmt.Errorf("counter %d after %d", counter, last)
		}
		last = counter
	}
	return nil
}

// fault is what befalls an operation. It returns when the TPM and the operation
// are as they must be afterwards.
type fault struct {
	name string
	hit  func(t *testing.T, op operation)
}

// faults of TPMs in the field, each over every operation.
var faults = []fault{
	{"300 ms a command", slowTPM},
	{"power cut before every command", func(t *testing.T, op operation) { powerCutAt(t, op, false) }},
	{"power cut after every command that changes the TPM", func(t *testing.T, op operation) { powerCutAt(t, op, true) }},
	{"unorderly stops raise no lockout counter", unorderlyStops},
	{"TPM in lockout", lockedTPM},
	{"TPM2_Clear before and in the middle", clearedTPM},
	{"memory full", fullTPM},
	{"RETRY YIELDED TESTING and NV_RATE", busyTPM},
	{"left-over sessions and objects of a killed agent", litteredTPM},
	{"error at every command leaves no session", failingTPM},
}

// TestFaults is the table of faults and operations.
func TestFaults(t *testing.T) {
	for _, f := range faults {
		for _, op := range operations {
			t.Run(f.name+"/"+op.name, func(t *testing.T) {
				t.Parallel()
				f.hit(t, op)
			})
		}
	}
}

// begin starts a TPM that is ready for an operation.
func begin(t *testing.T, op operation) (*tpmfarm.TPM, *tpm.TPM) {
	t.Helper()
	kind := op.kind
	if kind == "" {
		kind = "P-256"
	}
	chip := startKind(t, kind)
	dev := open(t, chip)
	if op.ready != nil {
		op.ready(t, dev)
	}
	return chip, dev
}

// sound checks that an operation succeeds and leaves nothing behind.
func sound(t *testing.T, dev *tpm.TPM, op operation, when string) {
	t.Helper()
	if err := op.run(t, dev); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	clean(t, dev, when)
}

// clean checks that nothing was left in the TPM: no session, no transient
// object, no key beside ours, no attack counted.
func clean(t *testing.T, dev *tpm.TPM, when string) {
	t.Helper()
	for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} {
		if list := handles(t, dev, first); len(list) > 0 {
			t.Errorf("%s: the TPM still holds %#x", when, list)
		}
	}
	if list := handles(t, dev, 0x81000000); len(list) > 6 {
		t.Errorf("%s: %d keys are persisted: %#x", when, len(list), list)
	}
}

func handles(t *testing.T, dev *tpm.TPM, first uint32) []tpm2.TPMHandle {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 16}.Execute(tpm.Raw(dev))
	must(t, err)
	list, err := rsp.CapabilityData.Data.Handles()
	must(t, err)
	return list.Handle
}

// A discrete TPM takes up to 300 ms for a command that changes something. Here
// it takes 2 ms, and the number of commands says how long the real one needs.
// TLS goes on meanwhile: a signature waits for one command, not for all.
func slowTPM(t *testing.T, op operation) {
	const scaled = 2 * time.Millisecond
	_, dev := begin(t, op)
	key, err := dev.Signer(t.Context())
	must(t, err)
	var commands, signatures atomic.Int32
	tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
		if command(cmd) == tpm2.TPMCCSign {
			signatures.Add(1)
		} else {
			commands.Add(1)
		}
		time.Sleep(scaled)
		return next(cmd)
	})
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
				done <- err
				return
			}
		}
	}()
	err = op.run(t, dev)
	close(stop)
	if e := <-done; e != nil && op.name != "rotate LDevID" { // its key is replaced
		t.Errorf("a signature meanwhile: %v", e)
	}
	if err != nil {
		t.Error(err)
	}
	if n := int(commands.Load()); n > op.most {
		t.Errorf("%d commands, at most %d: %v on a TPM that takes 300 ms", n, op.most, time.Duration(n)*300*time.Millisecond)
	} else {
		t.Logf("%d commands and %d signatures in between: %v at 300 ms a command", n, signatures.Load(), time.Duration(n)*300*time.Millisecond)
	}
	clean(t, tpm.Below(dev), "slow")
}

// changing are the commands that leave something behind after a power cycle.
var changing = []tpm2.TPMCC{
	tpm2.TPMCCEvictControl, tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVUndefineSpace, tpm2.TPMCCNVIncrement, tpm2.TPMCCNVSetBits,
}

// powerCutAt cuts the power before the nth command, or after the nth that
// changes the TPM, for every n. Each time the TPM is a fresh one: what the first
// run makes is not there.
func powerCutAt(t *testing.T, op operation, late bool) {
	cuts := op.cuts
	if late { // few commands are
		cuts = sparse
	}
	for n := 1; ; n++ {
		if cuts != nil && !cuts(n) {
			if n > op.most {
				return
			}
			continue
		}
		chip, dev := begin(t, op)
		count, dead := 0, false
		tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
			if dead {
				return nil, errors.New("power cut")
			}
			if !late || slices.Contains(changing, command(cmd)) {
				count++
			}
			if count < n {
				return next(cmd)
			}
			dead = true
			if late {
				if _, err := next(cmd); err != nil {
					t.Error(err)
				}
			}
			return nil, errors.New("power cut")
		})
		err := op.run(t, dev)
		if !dead {
			must(t, err)
			if n == 1 {
				t.Error("there was nothing to cut")
			}
			return
		}
		must(t, dev.Close())
		must(t, chip.Restart(t.Context()))
		dev = open(t, chip)
		sound(t, dev, op, fmt.Sprintf("after a cut at %d", n))
		if got := attacks(t, dev); got != 0 {
			t.Errorf("after a cut at %d the TPM counts %d attacks", n, got)
		}
		must(t, dev.Close())
		chip.Stop()
	}
}

// unorderlyStops are daily business at a till. With keys that count as attacks
// swtpm would lock at the third.
func unorderlyStops(t *testing.T, op operation) {
	chip, dev := begin(t, op)
	for n := range 6 {
		sound(t, dev, op, fmt.Sprintf("after %d unorderly stops", n))
		must(t, dev.Close())
		must(t, chip.Restart(t.Context()))
		dev = open(t, chip)
		if got := attacks(t, dev); got != 0 {
			t.Fatalf("after %d unorderly stops the TPM counts %d attacks", n+1, got)
		}
	}
}

// lockedTPM is one that other software, or an attacker, has locked.
func lockedTPM(t *testing.T, op operation) {
	_, dev := begin(t, op)
	lock(t, dev)
	if h, err := dev.Health(t.Context()); err != nil || !h.InLockout {
		t.Fatalf("the TPM is not locked: %+v and %v", h, err)
	}
	sound(t, dev, op, "in lockout")
}

// wipe is what physical presence, or a firmware menu, can do.
func wipe(t *testing.T, dev *tpm.TPM) {
	t.Helper()
	_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(tpm.Raw(dev))
	must(t, err)
}

func clearedTPM(t *testing.T, op operation) {
	again := func(dev *tpm.TPM, when string, sure bool) {
		t.Helper()
		err := op.run(t, dev)
		if op.gone != "" && err != nil && strings.Contains(err.Error(), op.gone) {
			err = nil
		} else if op.gone != "" && err == nil && sure {
			err = errors.New("it took no notice")
		}
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		clean(t, dev, when)
	}
	_, dev := begin(t, op)
	must(t, op.run(t, dev))
	wipe(t, dev)
	again(dev, "after TPM2_Clear", true)
	for n := 1; n <= op.most; n += 1 + op.most/6 {
		chip, dev := begin(t, op)
		count := 0
		tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
			if count++; count == n {
				wipe(t, tpm.Below(dev))
			}
			return next(cmd)
		})
		_ = op.run(t, dev) // may notice or not
		tpm.Unwrap(dev)
		again(dev, fmt.Sprintf("after TPM2_Clear at command %d", n), false)
		must(t, dev.Close())
		chip.Stop()
	}
}

// fill takes all the room there is, and returns how to give it back. A TPM keeps
// some for counters and for keys, so all three kinds are needed.
func fill(t *testing.T, dev *tpm.TPM) (free func()) {
	t.Helper()
	raw := tpm.Raw(dev)
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	index, kept := tpm2.TPMHandle(0x01400000), tpm2.TPMHandle(0x81800000)
	full := func(err error) bool {
		t.Helper()
		if errors.Is(err, tpm2.TPMRCNVSpace) {
			return true
		}
		must(t, err)
		return false
	}
	define := func(kind tpm2.TPMNT, size uint16) bool {
		t.Helper()
		_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
			Attributes: tpm2.TPMANV{NT: kind, PPWrite: true, AuthRead: true, NoDA: true, PlatformCreate: true},
		})}.Execute(raw)
		if full(err) {
			return false
		}
		index++
		return true
	}
	for _, size := range []uint16{2048, 256, 32, 1} {
		for define(tpm2.TPMNTOrdinary, size) {
		}
	}
	for define(tpm2.TPMNTCounter, 8) {
	}
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHPlatform, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(raw)
	must(t, err)
	object := &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}
	for ; ; kept++ {
		_, err := tpm2.EvictControl{Auth: tpm2.TPMRHPlatform, ObjectHandle: object, PersistentHandle: kept}.Execute(raw)
		if full(err) {
			break
		}
	}
	_, err = tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(raw)
	must(t, err)
	return func() {
		t.Helper()
		for i := tpm2.TPMHandle(0x01400000); i < index; i++ {
			pub, err := tpm2.NVReadPublic{NVIndex: i}.Execute(raw)
			must(t, err)
			_, err = tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: i, Name: pub.NVName}}.Execute(raw)
			must(t, err)
		}
		for h := tpm2.TPMHandle(0x81800000); h < kept; h++ {
			object := &tpm2.NamedHandle{Handle: h, Name: made.Name}
			_, err := tpm2.EvictControl{Auth: tpm2.TPMRHPlatform, ObjectHandle: object, PersistentHandle: h}.Execute(raw)
			must(t, err)
		}
	}
}

// A full TPM says what to do; what was there before goes on working.
func fullTPM(t *testing.T, op operation) {
	_, dev := begin(t, op)
	free := fill(t, dev)
	err := op.run(t, dev)
	if !errors.Is(err, tpm2.TPMRCNVSpace) || !strings.Contains(err.Error(), "memory is full") || !strings.Contains(err.Error(), "try again") {
		t.Errorf("got %v, want what to do", err)
	}
	if op.ready != nil {
		key, err := dev.Signer(t.Context())
		must(t, err)
		if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
			t.Errorf("the key in use: %v", err)
		}
	}
	free()
	sound(t, dev, op, "with room again")
}

// busyTPM asks for patience in bursts, as discrete TPMs do after power-on and
// in the middle of flash writes.
func busyTPM(t *testing.T, op operation) {
	_, dev := begin(t, op)
	asked := tpm.Busy(dev, 1+op.most/10, tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate)
	sound(t, dev, op, "busy")
	if n := asked(); n < 8 {
		t.Errorf("the TPM asked for patience %d times only", n)
	}
}

// The twin of clean: what an agent leaves is seen.
func TestLitterIsSeen(t *testing.T) {
	dev := open(t, start(t))
	must(t, tpm.Litter(dev))
	if s, o := handles(t, dev, 0x02000000), handles(t, dev, 0x80000000); len(s) != 1 || len(o) != 1 {
		t.Errorf("sessions %#x and objects %#x, want one of each", s, o)
	}
}

// litteredTPM is what a killed agent leaves without a resource manager.
func litteredTPM(t *testing.T, op operation) {
	chip, dev := begin(t, op)
	for range 4 { // more than there is room for
		must(t, tpm.Litter(dev))
		must(t, dev.Close())
		dev = open(t, chip)
	}
	sound(t, dev, op, "after four killed agents")
}

// failingTPM errs at one command. Whatever an operation has opened by then it
// closes: three sessions are all there are.
func failingTPM(t *testing.T, op operation) {
	for n := 1; ; n++ {
		if op.cuts != nil && !op.cuts(n) {
			if n > op.most {
				return
			}
			continue
		}
		chip, dev := begin(t, op)
		count, failed := 0, false
		tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
			if command(cmd) == tpm2.TPMCCFlushContext { // what is not flushed stays: the next Open's business
				return next(cmd)
			}
			if count++; count == n {
				failed = true
				return response(tpm2.TPMRCMemory), nil
			}
			return next(cmd)
		})
		err := op.run(t, dev)
		tpm.Unwrap(dev)
		if !failed {
			must(t, err)
			return
		}
		if err != nil && !errors.Is(err, tpm2.TPMRCMemory) { // nil: it went another way
			t.Errorf("error at command %d: got %v, want it", n, err)
		}
		clean(t, dev, fmt.Sprintf("after an error at command %d", n))
		sound(t, dev, op, fmt.Sprintf("again after an error at command %d", n))
		must(t, dev.Close())
		chip.Stop()
	}
}
