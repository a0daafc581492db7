package enrol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// anchored is what a TPM says of its counter.
func anchored(binding [32]byte, counter uint64) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestNV, ExtraData: tpm2.TPM2BData{Buffer: binding[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, &tpm2.TPMSNVCertifyInfo{
			IndexName: *anchorName, NVContents: tpm2.TPM2BData{Buffer: binary.BigEndian.AppendUint64(nil, counter)},
		}),
	}
}

// TestForgedAnchors shows a good anchor, and each way in which one can be bad.
func TestForgedAnchors(t *testing.T) {
	f, other := newForger(t), newForger(t)
	binding := [32]byte{7}
	info := func(change func(*tpm2.TPMSNVCertifyInfo)) func(*tpm2.TPMSAttest) {
		return func(a *tpm2.TPMSAttest) {
			c, _ := a.Attested.NV()
			change(c)
		}
	}
	for name, tt := range map[string]struct {
		change  func(*tpm2.TPMSAttest)
		torn    func(attest, sig []byte) ([]byte, []byte)
		ak      []byte
		counter uint64 // that is claimed; 0: as certified
		binding [32]byte
		want    string // empty: it holds
	}{
		"good":                        {},
		"other head":                  {binding: [32]byte{8}, want: "another challenge"},
		"key of another TPM":          {ak: other.ak, want: "not by the attestation key"},
		"key that is none":            {ak: []byte{1}, want: "attestation key"},
		"no key":                      {ak: []byte{}, want: "attestation key"},
		"counter differs":             {counter: 41, want: "stood at 42, not at 41"},
		"counter that is older":       {counter: 1 << 40, want: "stood at 42"},
		"flipped bit":                 {torn: func(a, s []byte) ([]byte, []byte) { a[len(a)-1] ^= 1; return a, s }, want: "not by the attestation key"},
		"flipped signature":           {torn: func(a, s []byte) ([]byte, []byte) { s[len(s)-1] ^= 1; return a, s }, want: "not by the attestation key"},
		"torn signature":              {torn: func(a, s []byte) ([]byte, []byte) { return a, s[:len(s)-1] }, want: "signature"},
		"torn":                        {torn: func(a, s []byte) ([]byte, []byte) { return a[:len(a)-1], s }, want: "not by the attestation key"},
		"nothing":                     {torn: func(_, s []byte) ([]byte, []byte) { return nil, s }, want: "not by the attestation key"},
		"not made by a TPM":           {change: func(a *tpm2.TPMSAttest) { a.Magic++ }, want: "not made by a TPM"},
		"index of another":            {change: info(func(c *tpm2.TPMSNVCertifyInfo) { c.IndexName.Buffer[33] ^= 1 }), want: "another index"},
		"part of the counter":         {change: info(func(c *tpm2.TPMSNVCertifyInfo) { c.NVContents.Buffer = c.NVContents.Buffer[:7] }), want: "not the whole"},
		"from the middle":             {change: info(func(c *tpm2.TPMSNVCertifyInfo) { c.Offset = 1 }), want: "not the whole"},
		"bound to more than the head": {change: func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = append(a.ExtraData.Buffer, 0) }, want: "another challenge"},
		"a quote": {change: func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestQuote
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
		}, want: "of type"},
		"a digest of the counter": {change: func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestNVDigest
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNVDigest, &tpm2.TPMSNVDigestCertifyInfo{IndexName: *anchorName})
		}, want: "of type"},
	} {
		t.Run(name, func(t *testing.T) {
			a := anchored(binding, 42)
			c, _ := a.Attested.NV()
			c.IndexName.Buffer = bytes.Clone(c.IndexName.Buffer)
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, c)
			if tt.change != nil {
				tt.change(&a)
			}
			attest := tpm2.Marshal(a)
			sig := f.sign(t, attest)
			if tt.torn != nil {
				attest, sig = tt.torn(attest, sig)
			}
			ak, counter, bound := f.ak, uint64(42), binding
			if tt.ak != nil {
				ak = tt.ak
			}
			if tt.counter != 0 {
				counter = tt.counter
			}
			if tt.binding != ([32]byte{}) {
				bound = tt.binding
			}
			err := VerifyAnchor(ak, bound, attest, sig, counter)
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want a good anchor", err)
				}
				return
			}
			if !errors.Is(err, ErrProof) || !strings.Contains(err.Error(), tt.want) || Check(err) != "audit.anchor" {
				t.Errorf("got %v (%s), want ErrProof with %q", err, Check(err), tt.want)
			}
		})
	}
}

// FuzzAnchor feeds what a device sends: without the key's signature nothing holds,
// and what is signed holds only as it was made.
func FuzzAnchor(f *testing.F) {
	key := newForger(f)
	good := tpm2.Marshal(anchored([32]byte{7}, 42))
	f.Add(key.ak, good, make([]byte, 64), uint64(42))
	f.Fuzz(func(t *testing.T, ak, attest, sig []byte, counter uint64) {
		if err := VerifyAnchor(ak, [32]byte{7}, attest, sig, counter); err == nil && !slices.Equal(attest, good) {
			t.Error("an anchor that nobody signed was accepted")
		}
		if len(attest) > 512 {
			return
		}
		if err := VerifyAnchor(key.ak, [32]byte{7}, attest, key.sign(t, attest), counter); err == nil {
			a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
			if err != nil || a.Type != tpm2.TPMSTAttestNV {
				t.Errorf("%x was taken for an anchor", attest)
			}
		}
	})
}
