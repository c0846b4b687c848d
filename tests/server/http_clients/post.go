// Sends a file with a length, and in chunks.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	content, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	for _, body := range []io.Reader{bytes.NewReader(content), io.MultiReader(bytes.NewReader(content))} {
		response, err := http.Post(os.Args[1], "image/jpeg", body)
		if err != nil {
			panic(err)
		}
		answer, _ := io.ReadAll(response.Body)
		fmt.Println(response.StatusCode, string(answer))
	}
}
