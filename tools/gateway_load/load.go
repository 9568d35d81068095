// The engine and the clients of `make bench-gateway`, so that only the gateway is Python.
//
//	load serve ADDRESS GAP_MS [CERTIFICATE KEY]   answers chats: JSON, or a stream of 20 chunks
//	load run URL BODY CONNECTIONS REQUESTS KEYS
//
// `run` prints its figures as JSON: latencies in milliseconds, and what failed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const chunks = 20

const chunk = `data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",` +
	`"created":1795157937,"model":"chat","choices":[{"index":0,"delta":{"content":" word"},` +
	`"logprobs":null,"finish_reason":null,"token_ids":null}]}` + "\n\n"

const end = `data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk",` +
	`"created":1795157937,"model":"chat","choices":[],"usage":{"prompt_tokens":150,` +
	`"total_tokens":170,"completion_tokens":20}}` + "\n\ndata: [DONE]\n\n"

const whole = `{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1795157937,` +
	`"model":"chat","choices":[{"index":0,"message":{"role":"assistant","content":` +
	`"word word word word word word word word word word word word word word word word word"},` +
	`"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":150,` +
	`"total_tokens":170,"completion_tokens":20}}`

func main() {
	if len(os.Args) > 3 && os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3], os.Args[4:])
	} else if len(os.Args) == 7 && os.Args[1] == "run" {
		run(os.Args[2:])
	} else {
		log.Fatal("usage: load serve|run …")
	}
}

func serve(address, gapMs string, pair []string) {
	gap := time.Duration(number(gapMs)) * time.Millisecond
	http.HandleFunc("/v1/chat/completions", func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			writer.Header().Set("Content-Type", "application/json")
			io.WriteString(writer, whole)
			return
		}
		writer.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for range chunks {
			// An engine writes each event by itself.
			io.WriteString(writer, chunk)
			writer.(http.Flusher).Flush()
			time.Sleep(gap)
		}
		io.WriteString(writer, end)
	})
	answer := func(body string) http.HandlerFunc {
		return func(writer http.ResponseWriter, _ *http.Request) {
			writer.Header().Set("Content-Type", "application/json")
			io.WriteString(writer, body)
		}
	}
	http.HandleFunc("/health", answer("{}"))
	http.HandleFunc("/v1/models", answer(`{"object":"list","data":[{"id":"chat","object":"model"}]}`))
	http.HandleFunc("/get_model_info", answer(`{"model_path":"chat","served_model_name":"chat"}`))
	http.HandleFunc("/get_server_info", answer(`{"model_path":"chat","served_model_name":"chat"}`))
	if len(pair) == 2 {
		log.Fatal(http.ListenAndServeTLS(address, pair[0], pair[1], nil))
	}
	log.Fatal(http.ListenAndServe(address, nil))
}

type figures struct {
	Completed int64   `json:"completed"`
	Failed    int64   `json:"failed"`
	Refused   int64   `json:"refused"`
	Seconds   float64 `json:"seconds"`
	P50Ms     float64 `json:"p50_ms"`
	P99Ms     float64 `json:"p99_ms"`
}

func run(arguments []string) {
	url := arguments[0]
	body, err := os.ReadFile(arguments[1])
	if err != nil {
		log.Fatal(err)
	}
	connections, requests, keys := number(arguments[2]), int64(number(arguments[3])), int64(number(arguments[4]))
	client := &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections, DisableCompression: true,
	}}
	var next, failed, refused atomic.Int64
	times := make([][]float64, connections)
	var group sync.WaitGroup
	begun := time.Now()
	for worker := range connections {
		group.Add(1)
		go func() {
			defer group.Done()
			for index := next.Add(1) - 1; index < requests; index = next.Add(1) - 1 {
				sent := time.Now()
				status := post(client, url, body, index%keys)
				if status == http.StatusUnauthorized {
					refused.Add(1)
				} else if status != http.StatusOK {
					failed.Add(1)
				} else {
					times[worker] = append(times[worker], time.Since(sent).Seconds()*1e3)
				}
			}
		}()
	}
	group.Wait()
	all := slices.Concat(times...)
	slices.Sort(all)
	result := figures{
		Completed: int64(len(all)), Failed: failed.Load(), Refused: refused.Load(),
		Seconds: time.Since(begun).Seconds(),
	}
	if len(all) > 0 {
		result.P50Ms, result.P99Ms = all[len(all)/2], all[len(all)*99/100]
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

func post(client *http.Client, url string, body []byte, key int64) int {
	request, err := http.NewRequest("POST", url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", fmt.Sprintf("Bearer tsk-%06d", key))
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, bufio.NewReader(response.Body)); err != nil {
		return 0
	}
	return response.StatusCode
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return value
}
