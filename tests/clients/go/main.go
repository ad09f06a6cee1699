// What Go's standard library says: `verify CA LEAF NAME` judges a certificate, `post URL FILE` sends a file over HTTPS with the
// roots that the environment names, `own CA URL FILE` with that root and no other, as if it were compiled in. Exit code 0 and a line beginning with "ok", or 1 and the error.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
)

func certificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

func verify(ca, leaf, name string) error {
	root, err := certificate(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	end, err := certificate(leaf)
	if err != nil {
		return err
	}
	_, err = end.Verify(x509.VerifyOptions{DNSName: name, Roots: roots})
	return err
}

func post(client *http.Client, url, file string) error {
	body, err := os.Open(file)
	if err != nil {
		return err
	}
	request, err := http.NewRequest("POST", url, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("DD-API-KEY", os.Getenv("KEY"))
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	fmt.Println("ok", answer.StatusCode, answer.Proto)
	return nil
}

func own(ca, url, file string) error {
	root, err := certificate(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	return post(&http.Client{Transport: transport}, url, file)
}

func main() {
	err := fmt.Errorf("verify CA LEAF NAME, post URL FILE, or own CA URL FILE")
	switch {
	case len(os.Args) == 5 && os.Args[1] == "verify":
		if err = verify(os.Args[2], os.Args[3], os.Args[4]); err == nil {
			fmt.Println("ok", os.Args[4])
		}
	case len(os.Args) == 4 && os.Args[1] == "post":
		err = post(http.DefaultClient, os.Args[2], os.Args[3])
	case len(os.Args) == 5 && os.Args[1] == "own":
		err = own(os.Args[2], os.Args[3], os.Args[4])
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
