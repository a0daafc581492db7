package ca

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/scrypt"
)

// An encrypted key file is standard PKCS#8 under PBES2, which openssl reads:
// scrypt, then AES-256-CBC [RFC 5958, 3; RFC 8018, 6.2; RFC 7914, 7]. Nothing
// in it authenticates the text; that a key came out which is that of the
// certificate beside it does. What openssl writes by itself (PBKDF2 with
// SHA-256) is read too. The libraries at hand panic when such a file is
// damaged, and one knows no scrypt.
var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidScrypt = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9} // HMAC
	oidAES256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// cost of scrypt: 16 MiB, what openssl allows itself to read, five times over.
var cost = scryptParams{N: 1 << 14, R: 8, P: 5}

// Bounds of what a file may ask of us.
const (
	maxMemory     = 256 << 20
	maxIterations = 10_000_000
)

var errPassphrase = errors.New("the passphrase is not that of this key, or the file is damaged")

type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbes2 struct {
	KDF, Cipher pkix.AlgorithmIdentifier
}

type scryptParams struct {
	Salt    []byte
	N, R, P int
	Length  int `asn1:"optional"`
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	Length     int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

// encrypt returns a key, which is PKCS#8 in DER, as an EncryptedPrivateKeyInfo.
func encrypt(der, passphrase []byte) ([]byte, error) {
	random := make([]byte, 16+aes.BlockSize)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	salt, iv := random[:16], random[16:]
	params, err := asn1.Marshal(scryptParams{Salt: salt, N: cost.N, R: cost.R, P: cost.P})
	if err != nil {
		return nil, err
	}
	key, err := scrypt.Key(passphrase, salt, cost.N, cost.R, cost.P, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	pad := aes.BlockSize - len(der)%aes.BlockSize
	data := append(append([]byte{}, der...), strings.Repeat(string(rune(pad)), pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, data)
	ivDER, err := asn1.Marshal(iv)
	if err != nil {
		return nil, err
	}
	scheme, err := asn1.Marshal(pbes2{
		KDF:    pkix.AlgorithmIdentifier{Algorithm: oidScrypt, Parameters: asn1.RawValue{FullBytes: params}},
		Cipher: pkix.AlgorithmIdentifier{Algorithm: oidAES256, Parameters: asn1.RawValue{FullBytes: ivDER}},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(encryptedKey{pkix.AlgorithmIdentifier{Algorithm: oidPBES2, Parameters: asn1.RawValue{FullBytes: scheme}}, data})
}

// decrypt undoes encrypt.
func decrypt(der, passphrase []byte) ([]byte, error) {
	var e encryptedKey
	var scheme pbes2
	var iv []byte
	switch {
	case !whole(der, &e) || !e.Algorithm.Algorithm.Equal(oidPBES2) || !whole(e.Algorithm.Parameters.FullBytes, &scheme):
		return nil, errors.New("not an encrypted key (PKCS#8, PBES2)")
	case !scheme.Cipher.Algorithm.Equal(oidAES256) || !whole(scheme.Cipher.Parameters.FullBytes, &iv) || len(iv) != aes.BlockSize:
		return nil, errors.New("the key is not encrypted with AES-256-CBC")
	case len(e.Data) == 0 || len(e.Data)%aes.BlockSize != 0:
		return nil, errPassphrase
	}
	key, err := derive(scheme.KDF, passphrase)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	data := make([]byte, len(e.Data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(data, e.Data)
	pad := int(data[len(data)-1])
	if pad == 0 || pad > aes.BlockSize || strings.Trim(string(data[len(data)-pad:]), string(rune(pad))) != "" {
		return nil, errPassphrase
	}
	return data[:len(data)-pad], nil
}

// EncryptKey returns a private key, PKCS#8 in DER, as the PEM that files of
// authorities have. Signers of releases keep theirs the same way.
func EncryptKey(der, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("encrypt key: an empty passphrase protects nothing")
	}
	return folder{o: Options{Passphrase: passphrase}}.encode(der)
}

// DecryptKey undoes EncryptKey.
func DecryptKey(block *pem.Block, passphrase []byte) ([]byte, error) {
	if block.Type != encryptedPEM {
		return nil, fmt.Errorf("%s is not an encrypted private key (PKCS#8)", block.Type)
	}
	return decrypt(block.Bytes, passphrase)
}

// derive makes the 32-byte key that a passphrase stands for.
func derive(kdf pkix.AlgorithmIdentifier, passphrase []byte) ([]byte, error) {
	switch {
	case kdf.Algorithm.Equal(oidScrypt):
		var p scryptParams
		if !whole(kdf.Parameters.FullBytes, &p) || p.N < 2 || p.R < 1 || p.P < 1 || p.P > 64 || p.R > 64 || p.N > maxMemory/128/p.R || p.Length != 0 && p.Length != 32 {
			return nil, errors.New("the key's scrypt parameters are out of bounds")
		}
		return scrypt.Key(passphrase, p.Salt, p.N, p.R, p.P, 32)
	case kdf.Algorithm.Equal(oidPBKDF2):
		var p pbkdf2Params
		if !whole(kdf.Parameters.FullBytes, &p) || !p.PRF.Algorithm.Equal(oidSHA256) || p.Iterations < 1 || p.Iterations > maxIterations || p.Length != 0 && p.Length != 32 {
			return nil, errors.New("the key's PBKDF2 parameters are not known: SHA-256 is")
		}
		return pbkdf2.Key(sha256.New, string(passphrase), p.Salt, p.Iterations, 32)
	}
	return nil, errors.New("the key's derivation is neither scrypt nor PBKDF2")
}

// whole parses DER with nothing behind it.
func whole(der []byte, v any) bool {
	rest, err := asn1.Unmarshal(der, v)
	return err == nil && len(rest) == 0
}

// Passphrase reads one from a file and takes the line end off. A name without
// a slash is that of a systemd credential when the process was given some. A
// file that everybody may read is refused.
func Passphrase(name string) ([]byte, error) {
	path := name
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Base(name) == name {
		path = filepath.Join(dir, name)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("passphrase: %s may be read by everybody; chmod 600 %s", path, path)
	}
	b, err := os.ReadFile(path) // #nosec G304 G703 -- the operator names it
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" || len(s) > 1024 {
		return nil, fmt.Errorf("passphrase: %s holds %d bytes, 1 to 1024 are wanted", path, len(s))
	}
	return []byte(s), nil
}
