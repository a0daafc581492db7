package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// keyOf is the key of somebody with a letter for a name: v is the vendor, m the
// tenant, b a buyer.
func keyOf(letter byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{letter}, ed25519.SeedSize))
}

func publicOf(letter byte) ed25519.PublicKey { return keyOf(letter).Public().(ed25519.PublicKey) }

func ek(name string) [sha256.Size]byte { return sha256.Sum256([]byte(name)) }

// codeOf is the code of a device's label, kept in the folder of the script.
func codeOf(ts *testscript.TestScript, name string) deed.Claim {
	path := filepath.Join(ts.Getenv("WORK"), name+".label")
	b, err := os.ReadFile(path)
	if err == nil {
		c, err := deed.ParseClaim(string(b))
		ts.Check(err)
		return c
	}
	c := deed.NewClaim(deed.DeviceOf(ek(name)))
	ts.Check(os.WriteFile(path, []byte(c.URI()+"\n"), 0o600))
	return c
}

// label NAME sets the variable NAME to the device's id; its label's URI is in
// NAME.label and the code alone in NAME.code.
func label(ts *testscript.TestScript, _ bool, args []string) {
	c := codeOf(ts, args[0])
	ts.Setenv(args[0], c.Device)
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), args[0]+".code"), []byte(c.Code+"\n"), 0o600))
}

// addManifest FILE NAME... writes the vendor's manifest of these devices.
func addManifest(ts *testscript.TestScript, _ bool, args []string) {
	m := deed.Manifest{Vendor: "Vend", Batch: "B7", Order: "4711", MadeAt: time.Now()}
	for _, name := range args[1:] {
		h := ek(name)
		m.Entries = append(m.Entries, deed.Listed{EKHash: hex.EncodeToString(h[:]), Model: "vend-1", Serial: "S-" + name, ClaimHash: codeOf(ts, name).Hash()})
	}
	b, err := deed.SignManifest(keyOf('v'), m)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// addOrder FILE PARTY NAME... writes vouchers that the vendor offers to a party.
func addOrder(ts *testscript.TestScript, _ bool, args []string) {
	to, err := deed.ParseParty([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	var all []deed.Voucher
	for _, name := range args[2:] {
		v, err := deed.NewVoucher(keyOf('v'), deed.Product{Vendor: "Vend", EKHash: ek(name), Model: "vend-1", Serial: "S-" + name}, time.Now())
		ts.Check(err)
		v, err = v.Transfer(publicOf('v'), keyOf('v'), to, deed.Terms{MayTransfer: true}, time.Now())
		ts.Check(err)
		all = append(all, v)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), deed.EncodeOrder(all), 0o600))
}

// buyer party FILE writes his party file; buyer accept FILE accepts the
// vouchers in it.
func buyer(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[1])
	if args[0] == "party" {
		b, err := json.Marshal(deed.Party{Key: publicOf('b'), Name: "Buyer AG", Tenant: "buyer"})
		ts.Check(err)
		ts.Check(os.WriteFile(path, b, 0o600))
		return
	}
	all, err := deed.DecodeOrder([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	for i, v := range all {
		all[i], err = v.Accept(publicOf('v'), keyOf('b'), time.Now())
		ts.Check(err)
	}
	ts.Check(os.WriteFile(path, deed.EncodeOrder(all), 0o600))
}

// addWaiting NAME TIER has a device ask to join; without a tier it enrols.
func addWaiting(ts *testscript.TestScript, _ bool, args []string) {
	st, h := ts.Value(storeKey{}).(*store.Store), ek(args[0])
	id := fleet.DeviceID(deed.DeviceOf(h))
	if len(args) == 2 {
		ts.Check(st.NoteWaiting(context.Background(), fleet.Waiting{
			Device: id, EKHash: hex.EncodeToString(h[:]), Tier: fleet.Tier(args[1]), Model: "vend-1", Serial: "S-" + args[0], From: "192.0.2.7", LastAt: time.Now(),
		}))
		return
	}
	ts.Check(st.Enrol(context.Background(), fleet.Device{ID: id, Tenant: "main", Tier: fleet.TierB, EKHash: hex.EncodeToString(h[:]), CertSerial: "c1", EnrolledAt: time.Now()}))
}

// addFirmware MODEL DEVICE has a device show a firmware event that nobody knows.
func addFirmware(ts *testscript.TestScript, _ bool, args []string) {
	st := ts.Value(storeKey{}).(*store.Store)
	events := []fleet.FirmwareEvent{{PCR: 4, Digest: strings.Repeat("ab", 32), What: "EV_EFI_BOOT_SERVICES_APPLICATION", FirstAt: time.Now()}}
	ts.Check(st.SeeFirmware(context.Background(), "main", args[0], fleet.DeviceID(args[1]), events))
	ts.Check(st.PutReferences(context.Background(), []fleet.BootReference{{Model: args[0], Release: "os/1.2.3", Body: []byte("{}"), PublishedAt: time.Now()}}))
	ts.Check(st.Appraised(context.Background(), fleet.Attestation{Device: fleet.DeviceID(args[1]), At: time.Now(), Trust: fleet.Quarantined, Findings: []fleet.Finding{
		{Check: "boot.unknown-event", PCR: "4", Event: "boot manager", Release: "os/1.2.3", Text: "nobody knows it; approve it or restore the boot manager"},
	}}, false))
}

// online DEVICE connects it.
func online(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Value(storeKey{}).(*store.Store).SetPresence(context.Background(), fleet.DeviceID(args[0]), true, time.Now()))
}
