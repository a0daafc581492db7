package enrol

import (
	"errors"
	"fmt"
)

// Stable names of the checks. They are in the audit trails of both sides and in
// the answer to the device; names of what a quote says begin with quote.
const (
	checkMessage    = "enrol.malformed"
	checkTLS        = "enrol.tls"
	checkEKCert     = "enrol.ek-certificate"
	checkKey        = "enrol.key-attributes"
	checkTier       = "enrol.tier"
	checkChallenge  = "enrol.challenge" // answered before, too late, or never asked
	checkBinding    = "enrol.binding"
	checkActivation = "enrol.activation"
	checkCertify    = "enrol.certify"
	checkAnchor     = "audit.anchor"
	checkBoot       = "enrol.boot" // unless the appraisal names a better one
	checkOwner      = "enrol.owner"

	checkSignature = "quote.signature"
	checkMalformed = "quote.malformed"
	checkQuoted    = "quote.binding"
	checkSelection = "quote.selection"
	checkValues    = "quote.values"

	checkIdentity = "identity.certificate"
	checkRecovery = "identity.recovery"
	checkGood     = "identity.evidence"
	checkEK       = "rotate.ek"
	checkCSR      = "est.request"
	checkSubject  = "est.subject"
	checkCSRKey   = "est.key"
)

// failure is an error that names the check that failed.
type failure struct {
	check string
	err   error
}

// Error implements error.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap returns the error itself.
func (f *failure) Unwrap() error { return f.err }

// failed is fmt.Errorf with the name of a check.
func failed(check, format string, args ...any) error {
	return &failure{check, fmt.Errorf(format, args...)}
}

// Check returns the stable name of the check that err speaks of, such as
// "enrol.activation"; empty when it speaks of none.
func Check(err error) string {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.check
	}
	return ""
}

// Refuse makes an ErrRefused that names the check that failed; a Directory and
// a Registry refuse by it. The text says what to do.
func Refuse(check, format string, args ...any) error {
	return &failure{check, fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))}
}
