package enrol

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// forger is a key in software that passes for an AK and signs what no TPM
// would: with it each check of an attestation is shown to stand alone.
type forger struct {
	key *ecdsa.PrivateKey
	ak  []byte
}

func newForger(t testing.TB) *forger {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	return &forger{key: key, ak: tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	})}
}

func (f *forger) sign(t testing.TB, attest []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(attest)
	r, s, err := ecdsa.Sign(rand.Reader, f.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.Bytes()},
		}),
	})
}

// lie is what a forged quote claims.
type lie struct {
	magic tpm2.TPMGenerated
	kind  tpm2.TPMST
	extra [32]byte
	sel   []tpm2.TPMSPCRSelection
	pcrs  [][]byte
	shown [][]byte // if other than pcrs
}

// quoteChecks are the names of what is said.
var quoteChecks = map[string]string{
	"not made by a TPM": "quote.malformed", "attestation of type": "quote.malformed", "another challenge or channel": "quote.binding",
	"selection": "quote.selection", "not those that were quoted": "quote.values", "PCR values for 10 registers": "quote.values", "PCR values for 11 registers": "quote.values", "PCR value of": "quote.values",
}

func TestForgedQuotes(t *testing.T) {
	f, other := newForger(t), newForger(t)
	extra := sha256.Sum256([]byte("binding"))
	values := func(n int) [][]byte {
		out := make([][]byte, n)
		for i := range out {
			out[i] = bytes.Repeat([]byte{byte(i)}, 32)
		}
		return out
	}
	sel := func(hash tpm2.TPMAlgID, mask ...byte) []tpm2.TPMSPCRSelection {
		return []tpm2.TPMSPCRSelection{{Hash: hash, PCRSelect: mask}}
	}
	all := sel(tpm2.TPMAlgSHA256, 0xff, 0x03, 0)
	for name, tt := range map[string]struct {
		change func(*lie)
		want   string // empty: good
	}{
		"good":        {func(*lie) {}, ""},
		"with PCR 11": {func(l *lie) { l.sel, l.pcrs = sel(tpm2.TPMAlgSHA256, 0xff, 0x0b, 0), values(11) }, ""},
		"without its value": {func(l *lie) {
			l.sel, l.pcrs, l.shown = sel(tpm2.TPMAlgSHA256, 0xff, 0x0b, 0), values(11), values(10)
		}, "PCR values for 11 registers"},
		"PCR 11 for 9":     {func(l *lie) { l.sel = sel(tpm2.TPMAlgSHA256, 0xff, 0x09, 0) }, "selection"},
		"PCR 10 and 11":    {func(l *lie) { l.sel, l.pcrs = sel(tpm2.TPMAlgSHA256, 0xff, 0x0f, 0), values(12) }, "selection"},
		"short mask":       {func(l *lie) { l.sel = sel(tpm2.TPMAlgSHA256, 0xff, 0x03) }, ""},
		"magic":            {func(l *lie) { l.magic++ }, "not made by a TPM"},
		"kind":             {func(l *lie) { l.kind = tpm2.TPMSTAttestCertify }, ""},
		"binding":          {func(l *lie) { l.extra[31] ^= 1 }, "another challenge or channel"},
		"fewer registers":  {func(l *lie) { l.sel, l.pcrs = sel(tpm2.TPMAlgSHA256, 0xff, 0x01, 0), values(9) }, "selection"},
		"more registers":   {func(l *lie) { l.sel, l.pcrs = sel(tpm2.TPMAlgSHA256, 0xff, 0x07, 0), values(11) }, "selection"},
		"other registers":  {func(l *lie) { l.sel = sel(tpm2.TPMAlgSHA256, 0xfe, 0x07, 0) }, "selection"},
		"other bank":       {func(l *lie) { l.sel = sel(tpm2.TPMAlgSHA384, 0xff, 0x03, 0) }, "selection"},
		"two banks":        {func(l *lie) { l.sel = append(slices.Clone(all), all...) }, "selection"},
		"no bank":          {func(l *lie) { l.sel = nil }, "selection"},
		"values":           {func(l *lie) { l.shown = values(10); l.shown[3][0] ^= 1 }, "not those that were quoted"},
		"values run on":    {func(l *lie) { l.shown = [][]byte{slices.Concat(values(10)...)} }, "PCR values for 10 registers"},
		"values run over":  {func(l *lie) { l.shown = overlapping(values(10)) }, "PCR value of"},
		"a value too many": {func(l *lie) { l.pcrs = values(11) }, "PCR values for 10 registers"},
	} {
		l := lie{magic: tpm2.TPMGeneratedValue, kind: tpm2.TPMSTAttestQuote, extra: extra, sel: all, pcrs: values(10)}
		tt.change(&l)
		if l.shown == nil {
			l.shown = l.pcrs
		}
		digest := sha256.Sum256(slices.Concat(l.pcrs...))
		a := tpm2.TPMSAttest{
			Magic: l.magic, Type: l.kind, ExtraData: tpm2.TPM2BData{Buffer: l.extra[:]}, ClockInfo: tpm2.TPMSClockInfo{ResetCount: 7, RestartCount: 8},
			FirmwareVersion: 9,
			Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
				PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: l.sel}, PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]},
			}),
		}
		if name == "kind" { // a Certify that is offered as a quote
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
			tt.want = "attestation of type"
		}
		attest := tpm2.Marshal(a)
		q, err := VerifyQuote(f.ak, attest, f.sign(t, attest), l.shown, extra)
		switch {
		case tt.want == "" && (err != nil || q.ResetCount != 7 || q.RestartCount != 8 || q.Firmware != 9 || q.Digest != digest):
			t.Errorf("%s: got %+v and %v", name, q, err)
		case tt.want != "" && (!errors.Is(err, ErrProof) || Check(err) != quoteChecks[tt.want] || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v with check %q, want ErrProof with %q", name, err, Check(err), tt.want)
		case tt.want != "" && q != (Quoted{}):
			t.Errorf("%s: got %+v with an error", name, q)
		}
		if _, err := VerifyQuote(f.ak, attest, other.sign(t, attest), l.shown, extra); !errors.Is(err, ErrProof) || Check(err) != "quote.signature" {
			t.Errorf("%s, signed by another key: got %v, want ErrProof", name, err)
		}
		// r and s alone are the same signature.
		r, sig, err := splitSignature(f.sign(t, attest))
		if err != nil {
			t.Fatal(err)
		}
		short := append(r.FillBytes(make([]byte, 32)), sig.FillBytes(make([]byte, 32))...)
		if _, err := VerifyQuote(f.ak, attest, short, l.shown, extra); (err == nil) != (tt.want == "") {
			t.Errorf("%s, short signature: got %v", name, err)
		}
		short[0] ^= 1
		if _, err := VerifyQuote(f.ak, attest, short, l.shown, extra); Check(err) != "quote.signature" {
			t.Errorf("%s, short signature with a flipped bit: got %v", name, err)
		}
	}
}

// overlapping moves a byte from one value to the next: the digest stays.
func overlapping(v [][]byte) [][]byte {
	v[0], v[1] = v[0][:31], append([]byte{v[0][31]}, v[1]...)
	return v
}

// The AK's own attributes decide whether its word counts.
func TestForgedCertify(t *testing.T) {
	f := newForger(t)
	extra := sha256.Sum256([]byte("binding"))
	name := append([]byte{0, 0x0b}, make([]byte, 32)...)
	attest := tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: extra[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: name}}),
	})
	if err := verifyCertify(f.ak, attest, f.sign(t, attest), name, extra); err != nil {
		t.Fatal(err)
	}
	if err := verifyCertify(f.ak, attest, f.sign(t, attest), append([]byte{1}, name...), extra); !errors.Is(err, ErrProof) {
		t.Errorf("another key's name: got %v, want ErrProof", err)
	}
	for what, change := range map[string]func(*tpm2.TPMTPublic){
		"unrestricted":       func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"may leave its TPM":  func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"was brought along":  func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"decrypts":           func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
		"may change parents": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		"named by SHA-1":     func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 },
	} {
		if err := verifyCertify(respell(t, change)(f.ak), attest, f.sign(t, attest), name, extra); !errors.Is(err, ErrProof) {
			t.Errorf("AK that is %s: got %v, want ErrProof", what, err)
		}
	}
}
