/* CVE-2026-45446: a context that has verified one message takes any tag of an empty one for good. */
#include "host.h"

#include <openssl/evp.h>

static const unsigned char key[32] = { 7 };
static const unsigned char text[8] = "message";

static int encrypt(EVP_CIPHER *cipher, unsigned char out[8], unsigned char tag[16])
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	int length;
	int done = EVP_EncryptInit_ex2(context, cipher, key, NULL, NULL) == 1 &&
		   EVP_EncryptUpdate(context, NULL, &length, (const unsigned char *)"head", 4) == 1 &&
		   EVP_EncryptUpdate(context, out, &length, text, sizeof text) == 1 &&
		   EVP_EncryptFinal_ex(context, out, &length) == 1 &&
		   EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1;

	EVP_CIPHER_CTX_free(context);
	return done;
}

static const char *verdict(void)
{
	EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-128-SIV", NULL);
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	unsigned char encrypted[8], tag[16], forged[16] = { 0 }, out[8];
	const char *result = "ODD: a good message is not decrypted";
	int length;

	if (cipher != NULL && encrypt(cipher, encrypted, tag) &&
	    EVP_DecryptInit_ex2(context, cipher, key, NULL, NULL) == 1 &&
	    EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, 16, tag) == 1 &&
	    EVP_DecryptUpdate(context, NULL, &length, (const unsigned char *)"head", 4) == 1 &&
	    EVP_DecryptUpdate(context, out, &length, encrypted, sizeof encrypted) == 1 &&
	    EVP_DecryptFinal_ex(context, out, &length) == 1 &&
	    EVP_DecryptInit_ex2(context, NULL, NULL, NULL, NULL) == 1 &&
	    EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, 16, forged) == 1 &&
	    EVP_DecryptUpdate(context, NULL, &length, (const unsigned char *)"forged", 6) == 1)
		result = EVP_DecryptFinal_ex(context, out, &length) == 1 ? "VULNERABLE" : "FIXED";
	EVP_CIPHER_CTX_free(context);
	EVP_CIPHER_free(cipher);
	return result;
}
